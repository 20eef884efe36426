"""What an op's `lower` may ask for while it turns one program node into torch.fx nodes.

Layout of a value (DESIGN 4): rows of its lowest ordered axis packed over all examples first, then its static axes in
type order:
`[total_rows, *static]`; per-example values are `[batch, *static]`; weight-level values `[*static]`. Two-sided weights
are stored as matrices `[outputs, inputs]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..dsl.axes import Axis, Group
from ..dsl.program import Node, Value

if TYPE_CHECKING:
    from torch import fx


class LowerContext(Protocol):
    """One graph under construction. Every fx node made while a program node is lowered carries its span and type in
    `meta`."""

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """`function(*args, **kwargs)` in the graph. `function` is a torch function, or one of codegen/functions
        (torch only)."""
        ...

    def read(self, value: Value) -> Any:
        """The fx node of a value, in its own layout; a Python number for a Constant."""
        ...

    def aligned(self, value: Value, axes: tuple[Axis, ...], rows: Axis | None, per_example: bool = False) -> Any:
        """A value ready to meet others laid out as `(rows or batch or nothing, *axes)`: gathered down to `rows` when
        it lives at an ancestor (example -> rows), static axes permuted into the order of `axes`, axes it lacks as
        size 1 (leading ones may be left out). A Constant stays a Python number."""
        ...

    def full(
        self,
        value: Value,
        axes: tuple[Axis, ...],
        rows: Axis | None,
        per_example: bool = False,
        group: Group | None = None,
    ) -> fx.Node:
        """As `aligned`, with every axis expanded to its size. `group`: with an entry for each of these examples, where
        they are not those of the node."""
        ...

    def present(self, value: Value) -> fx.Node | None:
        """The flags `[rows]` of a value with missing rows: true where there is one. None when nothing is missing."""
        ...

    def define(self, value: Value, node: Any, present: fx.Node | None = None) -> None:
        """Says which fx node computes an output of the program node; `present` for values with missing rows."""
        ...

    def offsets(self, axis: Axis) -> fx.Node:
        """int32 `[batch + 1]`: where the rows of each example begin."""
        ...

    def row_example(self, axis: Axis) -> fx.Node:
        """int64 `[rows]`: which example a row belongs to. Made once per graph."""
        ...

    def position(self, axis: Axis) -> fx.Node:
        """int64 `[rows]`: a row's number in its example, from 0 (in a decoding step: counted from the example's
        start)."""
        ...

    def edges(self, axis: Axis, owner: Axis | None = None) -> fx.Node:
        """int32 `[owner's rows + 1]`: where the rows of a nested axis begin that each row of its parent (or of
        another owner) has. Of an axis that is not nested, `offsets`."""
        ...

    def owner(self, axis: Axis, ancestor: Axis | None = None) -> fx.Node:
        """int64 `[rows]`: the row of its parent (or of an ancestor) that each row of a nested axis belongs to. Of an
        axis that is not nested, `row_example`."""
        ...

    def nest(self, axis: Axis, each: int) -> None:
        """Says that every row of a nested axis' parent owns `each` rows of it."""
        ...

    def index_at(self, rows: Axis, axis: Axis, which: str) -> fx.Node:
        """int64 `[rows]`: which row of an owner, or which segment of a cut (`own` or `closed`), counted in the
        example."""
        ...

    def cut(self, cut: Axis, along: Axis, ends: Any, inside: Any) -> None:
        """Says where a cut's segments end: flags `[rows of along]`, and with gaps which rows are in one. `offsets`,
        `row_example` and `position` of the cut follow from it."""
        ...

    def segment_of(self, cut: Axis, which: str) -> fx.Node:
        """int64 `[rows]`: the packed row of the cut that a row reads: `own`, `before` or `closed`; -1 for none."""
        ...

    def segment_index(self, cut: Axis, which: str) -> fx.Node:
        """int64 `[rows]`: the same (`own` or `closed`) counted in the example. In a gap, `own` is the segment to
        come."""
        ...

    def segment_index_on_whole(self, cut: Axis, outside: int) -> fx.Node:
        """Of a cut of a selection: the same at the rows of the whole axis; `outside` at rows in no segment."""
        ...

    def segment_inside(self, cut: Axis) -> fx.Node | None:
        """bool `[rows]`: whether a row is in a segment. None: every row is."""
        ...

    def per_segment(self, cut: Axis) -> fx.Node:
        """Some tensor with one entry for each segment."""
        ...

    def segment_values(self, cut: Axis, value: Value, node: Any, shape: tuple[int, ...]) -> Any:
        """`node [rows, *shape]`, which holds a value along the axis that is cut, at the rows of segments, segment by
        segment. The next two are counted in these rows."""
        ...

    def segment_first(self, cut: Axis, value: Value, node: Any) -> Any:
        """`node`, which holds a value along the axis that is cut, as it is at the first row of each row's segment."""
        ...

    def segment_bounds(self, cut: Axis) -> fx.Node:
        """int32 `[segments + 1]`: where each segment begins."""
        ...

    def segment_numbers(self, cut: Axis) -> fx.Node:
        """int64: the segment of each row."""
        ...

    def groups_by(self, cut: Axis, queries: Axis | None, keys: Axis) -> bool:
        """Whether `attend` may take the segments of a cut for examples."""
        ...

    def scaled_row(self, axis: Axis, which: str) -> fx.Node:
        """int64: the packed row of a scaled axis that each row of its parent reads: `own`, `before` or `closed`; -1
        for none."""
        ...

    def scaled_bounds(self, axis: Axis) -> fx.Node:
        """int32 `[rows + 1]`: the row of its parent that each row of a scaled axis begins with."""
        ...

    def windows(self, source: Axis, target: Axis, size: int, stride: int, before: int) -> fx.Node:
        """int64 `[rows of target, size]`: the packed rows of the source in the window of each; -1 for none."""
        ...

    def chosen(
        self, target: Axis | None, source: Axis | None, tag: Value, members: tuple[int, ...], group: Group | None
    ) -> fx.Node:
        """int64: which rows of `source` are rows of `target`: those whose tag is one of `members`, or all rows of the
        examples of `group`; for None as axes, which examples these are. `offsets`, `row_example` and `position` of the
        target follow from it."""
        ...

    def chosen_rows(self, axis: Axis) -> fx.Node:
        """int64: as `chosen` made it before for the axis."""
        ...

    def joined_order(self, whole: Axis | None, rows: tuple[fx.Node, ...]) -> fx.Node:
        """int64 `[rows of whole]`: where each row stands when the chosen rows of all parts lie behind one another."""
        ...

    def draw_key(self, node: Node, axis: Axis | None) -> fx.Node:
        """int64 `[rows]` (or `[batch]`, or a scalar at weight level): the counter a random op draws from at each row,
        mixed from run seed, step, example id, site path and row, so that packing changes nothing."""
        ...

    def step(self) -> fx.Node:
        """int64 scalar: the number of the optimiser step."""
        ...

    def working_type(self) -> Any:
        """The fx node or torch dtype in which reals are computed where nothing else says so."""
        ...
