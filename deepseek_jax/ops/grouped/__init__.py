"""Matmuls of rows sorted by group with one matrix a group, for every kind of device. Floor 1."""
