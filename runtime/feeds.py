"""What an objective asks of a training example that has parts, and which kind of part feeds which of its inputs.

The types of the inputs say it (the names are the spec's):

    kind: modality[seq]                     tags: which kind of part each row is of
    ids: id[word] in vocab                  text, where `axis word = seq where kind == text`
    latent: real[picture, cell, channels]   one item for each part: `flatten(.., (picture, spot) -> place)` makes rows
                                            of it, and `axis place = seq where kind == image` says of which kind
    sound: real[frame, mel]                 rows for each part, where `axis frame = seq where kind == sound`
    cap: int, label: id in classes          a value of the example (`[picture]`: of each item), read from its record

An objective without tags has one input of items: pictures, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..codegen.ops.nested import RowsAttrs
from ..dsl.axes import Axis, Ragged, Selected
from ..dsl.grids import is_grid, sides
from ..dsl.program import Program, Value
from ..dsl.value_type import Id, Real, Tag
from .errors import RuntimeFault

PICTURE = "image"  # the kind of what an objective without tags reads


@dataclass(frozen=True)
class TextFeed:
    """Ids along the rows of some kinds of parts, which are all text."""

    input: str
    kinds: tuple[str, ...]
    vocab: int


@dataclass(frozen=True)
class ItemFeed:
    """Numbers of one kind of part. `shape` is that of an item, or with `is_rows` of each of its rows. `rows`: how many
    rows of the example an item is; None: as many as it has. `sides`: height and width where it is a picture."""

    input: str
    kind: str
    shape: tuple[int, ...]
    rows: int | None
    is_rows: bool = False
    sides: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        return prod(self.shape[1:])


@dataclass(frozen=True)
class ValueFeed:
    """One value for an example, or with `of` for each item of that kind. `members` are those of a tag."""

    input: str
    is_whole: bool
    of: str | None = None
    members: tuple[str, ...] = ()
    limit: int = 0


@dataclass(frozen=True)
class Feeds:
    """`tags` is the input with a tag for each row, `members` what the tags mean. `order`: all inputs."""

    objective: str
    tags: str | None
    members: tuple[str, ...]
    texts: tuple[TextFeed, ...]
    items: tuple[ItemFeed, ...]
    values: tuple[ValueFeed, ...]
    order: tuple[str, ...]

    def text_of(self, kind: str) -> TextFeed | None:
        return next((feed for feed in self.texts if kind in feed.kinds), None)

    def item_of(self, kind: str) -> ItemFeed | None:
        return next((feed for feed in self.items if feed.kind == kind), None)

    @property
    def plain(self) -> str | None:
        """The kind of text that has no name in the data, and of marks."""
        return self.texts[0].kinds[0] if self.texts else None

    @property
    def vocab(self) -> int:
        return min((feed.vocab for feed in self.texts), default=0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of parts that some input reads."""
        return (*(kind for feed in self.texts for kind in feed.kinds), *(feed.kind for feed in self.items))


def reads_plain_text(objective: Program) -> bool:
    """Whether all that it asks for is ids along one axis: then documents are windows of tokens (data.py)."""
    if len(objective.inputs) != 1:
        return False
    kind, axes = objective.inputs[0].type.kind, objective.inputs[0].type.axes
    return isinstance(kind, Id) and len(axes) == 1 and axes[0].is_ordered


def bind(objective: Program, named: Mapping[str, str] | None = None) -> Feeds:
    """Which kind of part feeds which input. `named` decides where types do not."""
    return _Binding(objective, named or {}).feeds()


class _Binding:
    def __init__(self, objective: Program, named: Mapping[str, str]) -> None:
        self.objective = objective
        self.named = named
        self.tags = next((value for value in objective.inputs if _is_tags(value)), None)
        self.rows_made = list(_rows_made(objective))
        unknown = set(named) - {value.name for value in objective.inputs}
        if unknown:
            known = ", ".join(value.name for value in objective.inputs)
            raise RuntimeFault(f"{objective.name} has no input {min(unknown)} (feeds); it has {known}")

    def feeds(self) -> Feeds:
        found = {value.name: self._feed(value) for value in self.objective.inputs if value is not self.tags}
        every = found.values()
        texts = tuple(feed for feed in every if isinstance(feed, TextFeed))
        items = tuple(feed for feed in every if isinstance(feed, ItemFeed))
        values = tuple(feed for feed in every if isinstance(feed, ValueFeed))
        self._check_kinds(texts, items)
        name, members = (None, ()) if self.tags is None else (self.tags.name, _members(self.tags))
        order = tuple(value.name for value in self.objective.inputs)
        return Feeds(self.objective.name, name, members, texts, items, values, order)

    def _feed(self, value: Value) -> TextFeed | ItemFeed | ValueFeed:
        kind, rows = value.type.kind, value.type.rows
        static = value.type.static_axes
        kinds = self._kinds_along(rows)
        if isinstance(kind, Id) and kinds and not static:
            return TextFeed(value.name, kinds, kind.count)
        if isinstance(kind, Real) and kinds:
            return ItemFeed(value.name, self._one(value, kinds), _sizes(static), None, is_rows=True)
        if isinstance(kind, Real) and static and rows is not None and isinstance(rows.kind, Ragged):
            return self._items(value, rows)
        if not static and (rows is None or self._items_along(rows) is not None):
            return self._value(value)
        raise self._refused(value)

    def _items(self, value: Value, along: Axis) -> ItemFeed:
        static = value.type.static_axes
        first = static[0]
        # A grid of ragged sides has no number here, and is no static axis.
        lengths = tuple(side.size for side in sides(first)) if is_grid(first) else ()
        plane = (lengths[0], lengths[1]) if len(lengths) == 2 else None
        if self.tags is None:
            return ItemFeed(value.name, self.named.get(value.name, PICTURE), _sizes(static), first.size, sides=plane)
        made = next((attrs for attrs in self.rows_made if attrs.outer is along), None)
        if made is None:
            raise self._refused(value, f"no flatten(.., ({along.name}, ..) -> ..) says which rows its items are")
        kind = self._one(value, self._kinds_along(made.rows))
        return ItemFeed(value.name, kind, _sizes(static), prod(_sizes(made.inner)), sides=plane)

    def _value(self, value: Value) -> ValueFeed:
        kind, rows = value.type.kind, value.type.rows
        of = None if rows is None else self._items_along(rows)
        members = _members(value)
        limit = kind.count if isinstance(kind, Id) else len(members)
        return ValueFeed(value.name, not isinstance(kind, Real), of, members, limit)

    def _items_along(self, rows: Axis) -> str | None:
        """The kind of part whose items are the rows of this axis."""
        made = next((attrs for attrs in self.rows_made if attrs.outer is rows), None)
        kinds = () if made is None else self._kinds_along(made.rows)
        return kinds[0] if len(kinds) == 1 else None

    def _kinds_along(self, rows: Axis | None) -> tuple[str, ...]:
        """The kinds that an axis selected by the tags has rows of."""
        if rows is None or not isinstance(rows.kind, Selected) or self.tags is None:
            return ()
        tags = self.objective.selected.get(rows)  # none where nothing asks which rows they are
        is_theirs = rows.kind.tag == self.tags.name if tags is None else tags is self.tags
        return rows.kind.members if is_theirs else ()

    def _one(self, value: Value, kinds: tuple[str, ...]) -> str:
        kind = self.named.get(value.name, kinds[0] if len(kinds) == 1 else "")
        if kind not in kinds:
            wanted = " or ".join(kinds) or "no kind of part"
            raise self._refused(value, f"its rows are those of {wanted}; name one: feeds = {{{value.name} = ..}}")
        return kind

    def _check_kinds(self, texts: tuple[TextFeed, ...], items: tuple[ItemFeed, ...]) -> None:
        if not texts and not items:
            raise self._refused(None)
        if self.tags is None and (texts or len(items) > 1):
            raise self._refused(None, "without a tag for each row it can have one input, of pictures")
        kinds = [kind for feed in texts for kind in feed.kinds] + [feed.kind for feed in items]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise self._refused(None, f"two inputs are fed by {twice}")

    def _refused(self, value: Value | None, why: str = "") -> RuntimeFault:
        if value is None:
            takes = ", ".join(f"{value.name}: {value.type}" for value in self.objective.inputs) or "nothing"
        else:
            takes = f"{value.name}: {value.type}"
        why = why or "an example gives ids along an axis, or parts: see the manual, section 21"
        return RuntimeFault(f"objective {self.objective.name} takes {takes}; {why}")


def _is_tags(value: Value) -> bool:
    rows = value.type.rows
    is_plain = rows is not None and isinstance(rows.kind, Ragged) and not value.type.static_axes
    return is_plain and isinstance(value.type.kind, Tag)


def _members(value: Value) -> tuple[str, ...]:
    return value.type.kind.enum.members if isinstance(value.type.kind, Tag) else ()


def _rows_made(program: Program) -> Iterator[RowsAttrs]:
    for node in program.nodes:
        attrs: Any = node.attrs
        if isinstance(attrs, RowsAttrs) and not attrs.parts:
            yield attrs


def _sizes(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.size or 0 for axis in axes)
