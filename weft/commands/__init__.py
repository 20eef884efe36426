"""One module per command: a function `run` and its `EXAMPLES`. Nothing heavy is imported at the top of any of them."""
