"""A language for neural architectures that compiles to PyTorch and Triton."""

from pathlib import Path

# In a checkout the subpackages are siblings of this folder; in a wheel they lie inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "dsl").is_dir():
    __path__.insert(0, str(_checkout))
