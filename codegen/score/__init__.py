"""Kernels that reduce tiles of scores on line and never store the scores."""
