"""Selections: what `take` and `join` say of rows, written by specs and by the arms of a `match` (SEMANTICS 2 and 8).

    take    seq -> word               rows of one axis that have a tag, in order
    join    (word, spot) -> seq       rows of selections of one tag, back in their places

With a tag per example, the rows are those of whole examples: of each ordered axis, and of the examples themselves.
"""

from __future__ import annotations

from .axes import Axis, Group
from .record import record


@record
class TakeAttrs:
    """Inputs of the node: x and the tag. `group`: the examples that are taken whole; then `source` and `target` are
    None for a value per example. Without it, rows whose tag is one of `members` are taken."""

    source: Axis | None
    target: Axis | None
    members: tuple[int, ...]
    group: Group | None = None


@record
class JoinAttrs:
    """Inputs of the node: a value for each part, and the tag. `members` are the tags of each part; `groups`: the parts
    are whole examples; then `parts` and `whole` are None for a value per example."""

    parts: tuple[Axis | None, ...]
    whole: Axis | None
    members: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...] = ()
