"""codegen/functions, imported when first used: they import torch, and the op table must not (see lazy.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .functions import (
        attention,
        cuts,
        draws,
        gathers,
        packing,
        places,
        pointwise,
        precision,
        segments,
        selections,
        shifts,
        statics,
        windows,
    )
else:
    from .lazy import _LazyModule

    _package = __name__.rpartition(".")[0] + ".functions."
    attention = _LazyModule(_package + "attention")
    cuts = _LazyModule(_package + "cuts")
    draws = _LazyModule(_package + "draws")
    gathers = _LazyModule(_package + "gathers")
    packing = _LazyModule(_package + "packing")
    places = _LazyModule(_package + "places")
    pointwise = _LazyModule(_package + "pointwise")
    precision = _LazyModule(_package + "precision")
    segments = _LazyModule(_package + "segments")
    selections = _LazyModule(_package + "selections")
    shifts = _LazyModule(_package + "shifts")
    statics = _LazyModule(_package + "statics")
    windows = _LazyModule(_package + "windows")

__all__ = [
    "attention",
    "cuts",
    "draws",
    "gathers",
    "packing",
    "places",
    "pointwise",
    "precision",
    "segments",
    "selections",
    "shifts",
    "statics",
    "windows",
]
