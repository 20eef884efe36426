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
    if axis.is_static:
        return "static"
    return type(axis.kind).__name__.lower()


def _length(axis: Axis) -> str:
    if axis.is_static:
        written = str(axis.length)
        return written if written not in (axis.name, str(axis.size)) else ""
    match type(axis.kind).__name__:
        case "Scaled":
            return f"ceil({axis.kind.parent.name} / {axis.kind.divisor})"
        case "Nested":
            return f"one per row of {axis.kind.parent.name}"
        case "Cut":
            return f"cut from {axis.kind.parent.name}"
        case "Selected":
            return f"rows of {axis.kind.parent.name} where {axis.kind.tag} == {axis.kind.member}"
        case "Joined":
            return " + ".join(str(part) if isinstance(part, int) else part.name for part in axis.kind.parts)
        case _:
            return ""
