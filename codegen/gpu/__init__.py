"""Launchers of generated kernels. These files are copied beside the kernels of an artifact: torch and triton only."""
