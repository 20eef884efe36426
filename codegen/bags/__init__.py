"""Bags whose weights are computed of their lists while rows are read."""
