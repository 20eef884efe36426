"""The op table: every primitive of the language, in the order of the manual. Nothing here imports torch."""

from __future__ import annotations

from ...dsl.opdef import OpDef, OpTable
from .arithmetic import ARITHMETIC
from .attend import ATTEND
from .comparison import COMPARISON
from .conv import CONV
from .conversion import CONVERSION
from .cut import CUTS
from .draw import DRAWS
from .elementwise import ELEMENTWISE
from .gather import GATHERS
from .later import LATER
from .linear import LINEAR_OPS
from .parts import PARTS
from .reduction import REDUCTIONS
from .reshape import RESHAPES
from .rows import ROWS
from .selection import SELECTIONS
from .shift import SHIFTS
from .topk import TOPK_OPS

ALL_OPS: tuple[OpDef, ...] = (
    *ARITHMETIC,
    *COMPARISON,
    *ELEMENTWISE,
    *CONVERSION,
    *LINEAR_OPS,
    CONV,
    ATTEND,
    *GATHERS,
    *REDUCTIONS,
    *TOPK_OPS,
    *RESHAPES,
    *PARTS,
    *SHIFTS,
    *ROWS,
    *CUTS,
    *SELECTIONS,
    *DRAWS,
    *LATER,
)

OPS = OpTable({op.name: op for op in ALL_OPS})
