"""`weft inspect FILE axes`: every axis, what kind it is and how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from weft.dsl.axes import Axis
    from weft.dsl.check import Checked


def data(checked: Checked) -> list[dict[str, Any]]:
    return [
        {
            "name": axis.name,
            "kind": _kind(axis),
            "length": _length(axis),
            "size": axis.size,
            "at": str(axis.span),
        }
        for axis in _axes(checked)
    ]


def text(checked: Checked) -> str:
    rows = []
    for row in data(checked):
        size = "per example" if row["size"] is None else f"{row['size']:,}"
        rows.append((row["name"], row["kind"], row["length"], size, row["at"]))
    return table(("axis", "kind", "length", "size", "declared at"), rows, right=(3,))


def _axes(checked: Checked) -> list[Axis]:
    """Axes of all values and weights, ordered ones first. One that each call of a block makes anew is listed once."""
    found: dict[tuple, Axis] = {}
    for program in (*checked.models.values(), *checked.objectives.values()):
        values = [*program.inputs, *program.weights, *(value for node in program.nodes for value in node.outputs)]
        for value in values:
            counted = getattr(value.type.kind, "axis", None)
            for axis in (*value.type.axes, *([counted] if counted is not None else [])):
                found.setdefault((axis.name, axis.size, axis.span.source.name, axis.span.start), axis)
    return sorted(found.values(), key=lambda axis: axis.is_static)


def _kind(axis: Axis) -> str:
    return "static" if axis.is_static else type(axis.kind).__name__.lower()


def _length(axis: Axis) -> str:
    from weft.dsl.axes import ByCase, Cut, Joined, Nested, Scaled, Selected

    if axis.is_static:
        written = str(axis.length)
        return written if written not in (axis.name, str(axis.size)) else ""
    match axis.kind:
        case Scaled(parent, divisor):
            return f"ceil({parent.name} / {divisor})"
        case Nested(parent):
            return f"one per row of {parent.name}"
        case Cut(parent):
            return f"cut from {parent.name}"
        case Selected(parent, tag, members):
            return f"rows of {parent.name} where {tag} == {' or '.join(members)}"
        case Joined(parts):
            return " + ".join(str(part) if isinstance(part, int) else part.name for part in parts)
        case ByCase(tag, cases):
            return f"{tag}: " + ", ".join(f"{member} {of.name}" for member, of in cases)
        case _:
            return ""
