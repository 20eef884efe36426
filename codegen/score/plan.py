"""From what an attention is to what its kernels say: every string that the templates print.

    AttentionPlan (form, element type, widths)  ->  KernelPlan (parameters, loads, loops, formulas) per kernel

A tile of scores is rows x columns. Forward and the gradient of the queries have queries as rows; the gradient of keys
and values has keys as rows. `Sides` holds what differs, so that loads and masks are written once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..gpu.attention_form import AttentionForm
from ..gpu.formula import Row, Score, derivative, leaves
from .formulas import INTEGERS, EntryGradient, TableSums, entries_of, entry_gradients, entry_lines, formula_text

REAL = {"fp64": "tl.float64"}
LOG2E = math.log2(math.e)
_INNER, _EDGE, _ALL = "Tiles that every row sees whole.", "Tiles at an edge.", "Tiles that some row may see."


@dataclass(frozen=True)
class AttentionPlan:
    """Types are Triton's names: `dtype` of q, k and v, `bias_type` of the bias, None without one. `q_width`: entries of
    a head of q and k, `v_width`: of v."""

    form: AttentionForm
    dtype: str
    heads: int
    key_heads: int
    q_width: int
    v_width: int
    bias_type: str | None

    @property
    def has_bias(self) -> bool:
        return self.bias_type is not None

    @property
    def real(self) -> str:
        """Triton's name of the type in which scores and sums are held."""
        return REAL.get(self.dtype, "tl.float32")

    @property
    def group(self) -> int:
        return self.heads // self.key_heads


@dataclass(frozen=True)
class Part:
    """A stretch of a head's entries that is one operand of a product. `mask`: the tile is wider than what is left."""

    suffix: str
    offsets: str
    start: int
    block: int
    mask: str | None

    @property
    def arange(self) -> str:
        return f"tl.arange(0, {self.block})" if self.start == 0 else f"({self.start} + tl.arange(0, {self.block}))"

    @property
    def and_mask(self) -> str:
        return "" if self.mask is None else f" & ({self.mask})"

    @property
    def only_mask(self) -> str:
        return "" if self.mask is None else f", mask={self.mask}"

    @property
    def onto_score(self) -> str:
        return "" if self.start == 0 else ", score"

    @property
    def onto_dp(self) -> str:
        return "" if self.start == 0 else ", dp"


@dataclass(frozen=True)
class Load:
    name: str
    text: str


@dataclass(frozen=True)
class Gradient:
    """Of a captured value: what a tile adds to it."""

    name: str
    pointer: str
    text: str


@dataclass(frozen=True)
class Loop:
    """A pass over tiles of the other side. `allowed`: lines that compute which scores count."""

    what: str
    header: str
    opening: tuple[str, ...]
    loads: tuple[Load, ...]
    is_masked: bool
    allowed: tuple[str, ...]
    captured: tuple[Gradient, ...]
    entries: tuple[EntryGradient, ...]
    slope: str | None


@dataclass(frozen=True)
class KernelPlan:
    """What one template prints. Fields that a kernel has no use for are empty."""

    name: str
    summary: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    real: str
    range: str
    q_parts: tuple[Part, ...]
    v_parts: tuple[Part, ...]
    q_width: int
    v_width: int
    row_loads: tuple[Load, ...]
    head_loads: tuple[Load, ...]
    loops: tuple[Loop, ...]
    logit: tuple[str, ...]
    captured: tuple[Gradient, ...]
    scale: float
    tables: tuple[TableSums, ...] = ()
    column_mask: str = ""
    log2e: float = LOG2E
    ln2: float = math.log(2)

    @property
    def all_parts(self) -> tuple[Part, ...]:
        return (*self.q_parts, *self.v_parts)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*(name for name, _ in self.arguments), *(f"{name}: tl.constexpr" for name in self.constants))


def parts(width: int, letter: str) -> tuple[Part, ...]:
    """Powers of two that cover a head: 80 is 64 and 16, where one tile would be 128."""
    whole = _power(width)
    first = whole // 2
    starts = [(0, whole)]
    if whole > width and first >= 16 and first + _power(width - first) < whole:
        starts = [(0, first), (first, _power(width - first))]
    found = []
    for index, (start, block) in enumerate(starts):
        suffix = f"_{index}" if len(starts) > 1 else ""
        offsets = f"offs_{letter}{suffix}"
        is_ragged = start + block > width
        found.append(Part(suffix, offsets, start, block, f"{offsets} < {width}" if is_ragged else None))
    return tuple(found)


def _power(n: int) -> int:
    """The least power of two that holds n and that a product of tiles accepts."""
    return max(16, 1 << (n - 1).bit_length())


# -- pieces ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """How rows and columns of the score tile are called: letters, and the sides of captured values."""

    row: str
    column: str
    row_side: str
    column_side: str


BY_QUERY = Sides("m", "n", "query", "key")
BY_KEY = Sides("n", "m", "key", "query")


def _tile_load(name: str, tile: str, letter: str, part: Part, mask: str | None) -> Load:
    masks = [*([f"{mask}[:, None]"] if mask else []), *([f"({part.mask})"] if part.mask else [])]
    suffix = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
    strides = {"q": "stride_qm", "k": "stride_kn", "v": "stride_vn", "do": None}
    stride = strides[name] or "{do_stride}"
    address = f"{tile} + rows_{letter} * {stride} + {part.offsets}"
    return Load(f"{name}{part.suffix}", f"operand(tl.load({address}{suffix}), INTERPRETED)")


def tile_loads(plan: AttentionPlan, names: tuple[str, ...], place: str, letter: str, mask: str | None) -> list[Load]:
    """Loads of operands; `place` is how pointers to them are called: "", "_tile"."""
    loads = []
    for name in names:
        for part in parts(plan.q_width, "d") if name in "qk" else parts(plan.v_width, "v"):
            load = _tile_load(name, f"{name}{place}_ptr", letter, part, mask)
            loads.append(Load(load.name, load.text.replace("{do_stride}", f"(HEADS * {plan.v_width})")))
    return loads


def values_read(plan: AttentionPlan) -> list[int]:
    """Captured values of rows that some formula reads, in order."""
    formulas = [f for f in (plan.form.score, plan.form.predicate) if f is not None]
    return sorted({leaf.index for f in formulas for leaf in leaves(f) if isinstance(leaf, Row)})


def tables_read(plan: AttentionPlan) -> list[int]:
    """Captured tables that the score reads, in order."""
    return sorted({entry.index for entry in entries_of(plan.form)})


def vector_loads(plan: AttentionPlan, side: str, letter: str, mask: str | None, broadcast: str) -> list[Load]:
    """Loads of one value per row: captured ones of a side, and the bias of keys."""
    suffix = f", mask={mask}, other=0" if mask else ""
    loads = []
    for index in values_read(plan):
        captured = plan.form.captured[index]
        if captured.side != side:
            continue
        address = f"captured_{index}_ptr + offs_{letter}"
        if captured.has_heads:
            address += f" * stride_captured_{index} + head * stride_captured_{index}h"
        cast = "" if captured.type in INTEGERS else f".to({plan.real})"
        loads.append(Load(f"{side}_{index}", f"tl.load({address}{suffix}){cast}{broadcast}"))
    if plan.has_bias and side == "key":
        address = f"bias_ptr + offs_{letter} * stride_bn + head * stride_bh"
        loads.append(Load("bias", f"tl.load({address}{suffix}).to({plan.real}){broadcast}"))
    return loads


def logit_lines(plan: AttentionPlan, head: str = "head") -> tuple[str, ...]:
    """From `score` to `logit`, the exponent of two. `head`: that of the tile, or of each of its rows."""
    form = plan.form
    if form.score is not None:
        inner = f"({formula_text(plan, form.score)} + bias)" if plan.has_bias else formula_text(plan, form.score)
        return f"score *= {form.scale!r}", *entry_lines(plan, head), f"logit = {inner} * {LOG2E!r}"
    if plan.has_bias:
        return (f"logit = score * {form.scale * LOG2E!r} + bias * {LOG2E!r}",)
    return (f"logit = score * {form.scale * LOG2E!r}",)


def gradients_of(plan: AttentionPlan, side: str) -> tuple[Gradient, ...]:
    """Of the captured values of a side, and of the bias: `text` is the factor of the logit's gradient."""
    found = []
    for index, captured in enumerate(plan.form.captured):
        if captured.side == side and captured.has_gradient and plan.form.score is not None:
            factor = formula_text(plan, derivative(plan.form.score, Row(side, index)))
            found.append(Gradient(f"d_captured_{index}", f"d_captured_{index}_ptr", factor))
    if plan.has_bias and side == "key":
        found.append(Gradient("dbias", "dbias_ptr", "1.0"))
    return tuple(found)


def _times(factor: str, is_masked: bool) -> str:
    """A gradient times a factor, which may be no number where the score does not count."""
    if factor == "1.0":
        return "grad"
    return f"tl.where(allowed, grad * {factor}, 0.0)" if is_masked else f"grad * {factor}"


def _slope(plan: AttentionPlan) -> str:
    return "1.0" if plan.form.score is None else formula_text(plan, derivative(plan.form.score, Score()))


def loops_over(
    plan: AttentionPlan,
    sides: Sides,
    loads: dict[bool, list[Load]],
    gradients: tuple[Gradient, ...],
    is_exact: bool,
    makes_tables: bool,
) -> tuple[Loop, ...]:
    """Over whole tiles first, then edges; over all tiles alike where none is known to be seen whole."""
    column, block = sides.column, f"BLOCK_{sides.column.upper()}"
    is_split = plan.form.predicate is None and is_exact
    loops = []
    for is_masked in (False, True) if is_split else (True,):
        if not is_masked:
            what, header, opening = _INNER, f"start_{column} in tl.range(inner_start, inner_stop, {block})", ()
        elif is_split:
            jump = f"inner_stop + (tile - left) * {block}"
            start = f"start_{column} = tl.where(tile < left, start + tile * {block}, {jump})"
            what, header, opening = _EDGE, "tile in tl.range(0, tiles)", (start,)
        else:
            what, header, opening = _ALL, f"start_{column} in tl.range(start, stop, {block})", ()
        slope = _slope(plan)
        loops.append(
            Loop(
                what,
                header,
                opening,
                tuple(loads[is_masked]),
                is_masked,
                _allowed(plan, sides) if is_masked else (),
                tuple(Gradient(g.name, g.pointer, _times(g.text, is_masked)) for g in gradients),
                entry_gradients(plan, is_masked) if makes_tables else (),
                None if slope == "1.0" else _times(slope, is_masked),
            )
        )
    return tuple(loops)


def _allowed(plan: AttentionPlan, sides: Sides) -> tuple[str, ...]:
    """Bounds are always those of the queries: they are exact."""
    if sides is BY_QUERY:
        bounds = "(offs_n[None, :] >= low[:, None]) & (offs_n[None, :] < high[:, None])"
    else:
        bounds = "(offs_n[:, None] >= q_low[None, :]) & (offs_n[:, None] < q_high[None, :])"
    if plan.form.predicate is None:
        return (f"allowed = {bounds}",)
    return f"allowed = {bounds}", f"allowed &= {formula_text(plan, plan.form.predicate)}"


def range_line(plan: AttentionPlan, rows: str, block: str, is_exact: bool) -> str:
    if plan.form.predicate is None and is_exact:
        letter = "m" if rows == "rows_k" else "n"
        return f"start, inner_start, inner_stop, left, tiles = tile_range(low, high, mask_{letter}, {rows}, {block})"
    return f"start, stop = outer_range(low, high, {rows}, {block})"
