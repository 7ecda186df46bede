"""Grouped matmuls as Pallas kernels of Mosaic GPU: NVIDIA's Hopper. Floor 1."""
