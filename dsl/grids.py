"""Grids and scaled axes: how long their sides are, and how rows of a coarse axis lie over those of a fine one.

axis cell = grid(32, 48)      sides 32, 48
axis half = cell / 2          sides 16, 24; each row of it lies over 2 x 2 rows of cell
axis level[i] = cell / 2^i    level[3] lies over 2 x 2 rows of level[2]
"""

from __future__ import annotations

from .axes import Axis, Grid, Scaled, Side


def is_grid(axis: Axis) -> bool:
    """Whether rows of the axis lie in rows and columns."""
    return isinstance(root(axis)[0].kind, Grid)


def root(axis: Axis) -> tuple[Axis, int]:
    """What an axis was scaled from in the end, and by how much. Rounding up twice is rounding up once."""
    divisor = 1
    while isinstance(axis.kind, Scaled):
        divisor *= axis.kind.divisor
        axis = axis.kind.parent
    return axis, divisor


def scaled_side(side: Side, divisor: int) -> Side:
    return Side(side.length.ceil_divided(divisor), -(-side.size // divisor))


def sides(axis: Axis) -> tuple[Side, ...]:
    """The sides of a static axis: height and width of a grid, the length of any other."""
    assert axis.size is not None
    first, divisor = root(axis)
    if isinstance(first.kind, Grid) and first.kind.sides is not None:
        return tuple(scaled_side(side, divisor) for side in first.kind.sides)
    return (Side(axis.length, axis.size),)


def scale(fine: Axis, coarse: Axis) -> int | None:
    """How many rows of `fine` (on each side of a grid) one of `coarse` lies over; None where the two are not scaled
    from one axis."""
    (first, by), (other, by_more) = root(fine), root(coarse)
    return by_more // by if first is other and by_more % by == 0 else None
