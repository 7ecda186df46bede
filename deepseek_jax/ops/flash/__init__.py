"""Attention by kernels that keep no weights in memory: `attention` is the operation. Floor 1."""
