"""What a lowered graph takes and gives, without the program: plain data that the runtime packs calls by and an
artifact stores.

Order of a graph's arguments: the model's inputs, the offsets of each ordered axis, the draw arguments (when the graph
draws), the decoding state (in a decoding graph). Order of results: the outputs and then the offsets of axes that the
graph makes rows of, or for an objective a sum and a count for each loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..dsl.axes import Cut, Selected
from ..dsl.program import Program, Value
from ..dsl.value_type import Flag, Id, Int, Real, Tag, ValueType

DRAW_ARGUMENTS = ("draw_seed", "draw_step", "draw_examples")


@dataclass(frozen=True)
class Slot:
    """One input or output.

    `kind` is real, int, flag, tag or id; `limit` the number of legal values of ids and tags (0: any). `rows` names
    the ordered axis whose rows it is stored along; `per_example` says one entry per example; neither: one value for
    the whole call.
    `axes` and `shape` are its static axes.
    """

    name: str
    kind: str
    rows: str | None
    per_example: bool
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    limit: int = 0
    of: str = ""  # the axis of an id, the enum of a tag
    members: tuple[str, ...] = ()

    def describe(self) -> str:
        """As the spec writes it: `id[seq] in vocab`."""
        names = ", ".join(((self.rows,) if self.rows else ()) + self.axes)
        brackets = f"[{names}]" if names else ""
        match self.kind:
            case "id":
                return f"id{brackets} in {self.of}"
            case "tag":
                return f"{self.of}{brackets}"
            case kind:
                return f"{kind}{brackets}"


@dataclass(frozen=True)
class SelectedRows:
    """Rows of `axis` are those rows of `parent` whose `tag`, an input, is one of `members`."""

    axis: str
    parent: str
    tag: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class ShownRows:
    """Rows of `parent` whose `tag`, an input, is one of `members` are those of the rows of `owner`, in order: `each`
    that follow one another."""

    owner: str
    parent: str
    tag: str
    members: tuple[int, ...]
    each: int


@dataclass(frozen=True)
class Signature:
    """`outputs` of a model; `losses` of an objective. `draws`: the graph takes the draw arguments. `born`: axes whose
    rows the graph makes; it gives their offsets after the outputs. `selected`: axes of inputs whose number of rows
    follows from a tag. `owners`: for each nested axis the one whose rows own its rows; its offsets say where the rows
    of each owner begin. Owners come before what they own. `shown`: what tags must say for rows that are flattened into
    a selection."""

    name: str
    inputs: tuple[Slot, ...]
    axes: tuple[str, ...]
    outputs: tuple[Slot, ...]
    losses: tuple[str, ...] = ()
    draws: bool = False
    born: tuple[str, ...] = ()
    selected: tuple[SelectedRows, ...] = ()
    owners: tuple[tuple[str, str], ...] = ()
    shown: tuple[ShownRows, ...] = ()

    def chain(self, axis: str) -> tuple[str, ...]:
        """An axis and what owns its rows, from the one with rows in examples down to it."""
        owner = dict(self.owners).get(axis)
        return (axis,) if owner is None else (*self.chain(owner), axis)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "inputs": [_slot_to_json(slot) for slot in self.inputs],
            "axes": list(self.axes),
            "outputs": [_slot_to_json(slot) for slot in self.outputs],
            "losses": list(self.losses),
            "draws": self.draws,
            "born": list(self.born),
            "owners": [list(pair) for pair in self.owners],
            "selected": [[s.axis, s.parent, s.tag, list(s.members)] for s in self.selected],
            "shown": [[s.owner, s.parent, s.tag, list(s.members), s.each] for s in self.shown],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Signature:
        return Signature(
            name=str(data["name"]),
            inputs=tuple(map(_slot_from_json, data["inputs"])),
            axes=tuple(map(str, data["axes"])),
            outputs=tuple(map(_slot_from_json, data["outputs"])),
            losses=tuple(map(str, data["losses"])),
            draws=bool(data["draws"]),
            born=tuple(map(str, data["born"])),
            owners=tuple((str(axis), str(owner)) for axis, owner in data.get("owners", ())),
            selected=tuple(
                SelectedRows(str(axis), str(parent), str(tag), tuple(map(int, members)))
                for axis, parent, tag, members in data.get("selected", ())
            ),
            shown=tuple(
                ShownRows(str(owner), str(parent), str(tag), tuple(map(int, members)), int(each))
                for owner, parent, tag, members, each in data.get("shown", ())
            ),
        )


def signature_of(program: Program, draws: bool = False) -> Signature:
    """The signature of a program's reference graph."""
    return Signature(
        name=program.name,
        inputs=tuple(slot(value.name, value.type) for value in program.inputs),
        axes=tuple(axis.name for axis in program.ordered_axes),
        outputs=tuple(slot(name, value.type) for name, value in program.outputs),
        losses=tuple(term.name for term in program.losses),
        draws=draws,
        born=tuple(axis.name for axis in program.born_axes),
        owners=tuple(
            (axis.name, axis.parent.name)
            for axis in (*program.ordered_axes, *program.born_axes)
            if axis.parent is not None
        ),
        selected=_selected(program),
        shown=_shown(program),
    )


def _selected(program: Program) -> tuple[SelectedRows, ...]:
    found = []
    for axis, tag in program.selected.items():
        kind = axis.kind
        if axis in program.ordered_axes and tag in program.inputs and isinstance(kind, Selected):
            found.append(SelectedRows(axis.name, kind.parent.name, tag.name, _members(tag, kind)))
    return tuple(found)


def _shown(program: Program) -> tuple[ShownRows, ...]:
    found = []
    for cut in program.shown.values():
        assert isinstance(cut.kind, Cut)
        along, owner = cut.kind.parent, cut.kind.owner
        assert isinstance(along.kind, Selected)
        tag = program.selected.get(along)
        # Of what no caller gives, the graph itself finds out.
        if owner in program.ordered_axes and along.kind.parent in program.ordered_axes and tag in program.inputs:
            members = _members(tag, along.kind)
            found.append(ShownRows(owner.name, along.kind.parent.name, tag.name, members, cut.kind.each))
    return tuple(found)


def _members(tag: Value, kind: Selected) -> tuple[int, ...]:
    assert isinstance(tag.type.kind, Tag)
    return tuple(tag.type.kind.enum.members.index(member) for member in kind.members)


def slot(name: str, type_: ValueType) -> Slot:
    kind, limit, of, members = _kind_facts(type_)
    return Slot(
        name=name,
        kind=kind,
        rows=type_.rows.name if type_.rows is not None else None,
        per_example=type_.per_example,
        axes=tuple(axis.name for axis in type_.static_axes),
        shape=sizes(type_.static_axes),
        limit=limit,
        of=of,
        members=members,
    )


def sizes(axes: Iterable[Any]) -> tuple[int, ...]:
    """The lengths of static axes."""
    return tuple(axis.size for axis in axes)


def is_real(value: Value) -> bool:
    return isinstance(value.type.kind, Real)


def _kind_facts(type_: ValueType) -> tuple[str, int, str, tuple[str, ...]]:
    match type_.kind:
        case Real():
            return "real", 0, "", ()
        case Int():
            return "int", 0, "", ()
        case Flag():
            return "flag", 0, "", ()
        case Tag(enum):
            return "tag", len(enum.members), enum.name, enum.members
        case Id() as id_:
            return "id", id_.count, id_.axis.name, ()


def _slot_to_json(slot_: Slot) -> dict[str, Any]:
    return {
        "name": slot_.name,
        "kind": slot_.kind,
        "rows": slot_.rows,
        "per_example": slot_.per_example,
        "axes": list(slot_.axes),
        "shape": list(slot_.shape),
        "limit": slot_.limit,
        "of": slot_.of,
        "members": list(slot_.members),
    }


def _slot_from_json(data: dict[str, Any]) -> Slot:
    return Slot(
        name=str(data["name"]),
        kind=str(data["kind"]),
        rows=None if data["rows"] is None else str(data["rows"]),
        per_example=bool(data["per_example"]),
        axes=tuple(map(str, data["axes"])),
        shape=tuple(map(int, data["shape"])),
        limit=int(data["limit"]),
        of=str(data["of"]),
        members=tuple(map(str, data["members"])),
    )
