"""Grouped matrix products: one launch for the rows and the weights of all towers."""
