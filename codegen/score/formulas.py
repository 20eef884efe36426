"""Formulas of scores as Triton computes them in a tile, and the entries of tables that they read.

Entries are gathered in the tile. The gradient of a table is made with that of the queries: a program holds a sum for
every entry and, of each tile, visits the entries from the least to the greatest that the tile reads, where it sums
what all scores that read one give it. A tile far from the diagonal reads few entries of a table by distance. The sums
of all programs are added by torch, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..gpu.attention_form import AttentionForm
from ..gpu.formula import Entry, Formula, Row, derivative, leaves, replaced, triton_text

if TYPE_CHECKING:
    from .plan import AttentionPlan

INTEGERS = ("i1", "u8", "i8", "i16", "i32", "i64")


@dataclass(frozen=True)
class TableSums:
    """The gradient of one table: a program stores `entries` sums, and holds `block`, a power of two."""

    name: str
    pointer: str
    entries: int
    block: int


@dataclass(frozen=True)
class EntryGradient:
    """What a tile gives the entries that one place of the formula reads. `at`: which, between `first` and `last`;
    `text`: the part of each score."""

    table: TableSums
    at: str
    first: str
    last: str
    text: str


def entries_of(form: AttentionForm) -> dict[Entry, Row]:
    """The entries that a score reads, as values of the tile: entry_0, entry_1, .. in an order that can be computed."""
    found = () if form.score is None else (leaf for leaf in leaves(form.score) if isinstance(leaf, Entry))
    return {entry: Row("entry", number) for number, entry in enumerate(dict.fromkeys(found))}


def formula_text(plan: AttentionPlan, formula: Formula) -> str:
    """As Triton computes it in a tile."""
    form, known = plan.form, entries_of(plan.form)
    tables = {row: entry.index for entry, row in known.items()}
    return triton_text(
        replaced(formula, known),
        lambda row: form.captured[tables.get(row, row.index)].type not in INTEGERS,
        plan.real,
    )


def entry_lines(plan: AttentionPlan, head: str) -> tuple[str, ...]:
    """Loads of the entries that the score reads. `head`: that of the tile, or of each of its rows."""
    lines = []
    for entry, row in entries_of(plan.form).items():
        table, name = plan.form.captured[entry.index], f"entry_{row.index}"
        place = f"{head} * {table.entries} + {name}_at" if table.has_heads else f"{name}_at"
        cast = "" if table.type in INTEGERS else f".to({plan.real})"
        lines += [
            f"{name}_at = ({formula_text(plan, entry.at)}).to(tl.int32)",
            f"{name} = tl.load(captured_{entry.index}_ptr + {place}){cast}",
        ]
    return tuple(lines)


def table_sums(form: AttentionForm) -> tuple[TableSums, ...]:
    return tuple(_sums(form, index) for index in form.trained_tables)


def _sums(form: AttentionForm, index: int) -> TableSums:
    entries = form.captured[index].entries
    return TableSums(f"d_captured_{index}", f"d_captured_{index}_ptr", entries, 1 << (entries - 1).bit_length())


def entry_gradients(plan: AttentionPlan, is_masked: bool) -> tuple[EntryGradient, ...]:
    """At every place of the formula that reads a table with a gradient, in a tile of query rows."""
    form, found = plan.form, []
    for entry, row in entries_of(form).items():
        if entry.index not in form.trained_tables or form.score is None:
            continue
        sums, at = _sums(form, entry.index), f"entry_{row.index}_at"
        factor = formula_text(plan, derivative(form.score, entry))
        part = "grad" if factor == "1.0" else f"grad * {factor}"
        # Of scores that do not count, nobody asks which entries they would read.
        least, most = (f"tl.where(allowed, {at}, {end})" if is_masked else at for end in (sums.entries, -1))
        counted = "allowed" if is_masked else "mask_m[:, None]"
        found.append(
            EntryGradient(sums, at, f"tl.min({least})", f"tl.max({most})", f"tl.where({counted}, {part}, 0.0)")
        )
    return tuple(found)
