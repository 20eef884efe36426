"""What bench/gpu.py measures on a CUDA machine, a section a module."""
