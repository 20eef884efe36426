"""A language for neural architectures that compiles to PyTorch and Triton.

    import weft
    model = weft.load("specs/olmo2.weft", size="tiny")

Importing weft imports neither torch nor a parser: names below are found in their modules when they are first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout the subpackages are siblings of this folder; in a wheel they lie inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "dsl").is_dir():
    __path__.insert(0, str(_checkout))

_HOMES = {"load": "weft.runtime.model", "SpecErrors": "weft.dsl.diagnostics"}

if TYPE_CHECKING:
    from weft.dsl.diagnostics import SpecErrors as SpecErrors
    from weft.runtime.model import load as load

__all__ = ["SpecErrors", "__version__", "load"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    return getattr(import_module(home), name)
