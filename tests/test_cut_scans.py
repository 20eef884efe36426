"""The scan of cuts, in Triton's interpreter, against the functions of torch that say what it means; what the pass
leaves to it; how it compiles and what it moves."""

from __future__ import annotations

import importlib.util
import operator

import pytest
import torch
from torch import Tensor, fx

from tests import op_samples
from tests.counted_memory import counted
from tests.fused_models import assert_equal, gradients
from weft.codegen.artifact import copied_modules
from weft.codegen.cut_scan_text import CAP, SCAN, CutScan, cut_scan_kernel, cut_scan_work
from weft.codegen.functions import cuts
from weft.codegen.functions.packing import row_example
from weft.codegen.gpu import cut_scans
from weft.codegen.gpu.cut_scans import BLOCK_N, BLOCK_W, Scan, capped, scan, scan_by_torch
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.runtime.kernels import attach_kernels

# Rows of each example: none at all, empty ones, one row, whole words, more rows than a program has, many short ones.
LENGTHS = {
    "no examples": (),
    "no rows": (0, 0),
    "one row": (1,),
    "odd": (0, 1, 7, 0, 3, 1, 0),
    "words": (32, 64, 31, 33),
    "programs": (BLOCK_N, 0, 1, BLOCK_N - 1, 3 * BLOCK_N + 5, 2),
    "many": (1, 0, 2, 5) * 300,
}
EACH_LENGTH = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def offsets_of(lengths: tuple[int, ...]) -> Tensor:
    counts = torch.tensor((0, *lengths), dtype=torch.int64)
    return counts.cumsum(0).to(torch.int32)


def flags(rows: int, share: float, seed: int = 0) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < share


def assert_same(got: Scan, want: Scan) -> None:
    for name, one, two in zip(Scan._fields, got, want, strict=True):
        assert one.dtype == two.dtype == torch.int32, name
        assert torch.equal(one, two), name


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 1000])
def test_flags_in_words(rows: int) -> None:
    given = flags(rows, 0.5)
    words = cuts.packed(given)
    assert words.dtype == torch.int32
    assert [bool(words[row // 32] >> (row % 32) & 1) for row in range(rows)] == given.tolist()
    assert torch.equal(cuts.unpacked(words, rows), given)


@EACH_LENGTH
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_numbers_of_segments(lengths: tuple[int, ...], share: float) -> None:
    offsets, rows = offsets_of(lengths), torch.empty(sum(lengths))
    words = cuts.packed(flags(len(rows), share))
    assert_same(scan(words, None, offsets, rows, True, True), scan_by_torch(words, None, offsets, rows, True, True))


@EACH_LENGTH
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gaps(lengths: tuple[int, ...], share: float) -> None:
    """Runs of an id; `share` of the rows are in none."""
    offsets, rows = offsets_of(lengths), torch.empty(sum(lengths))
    ids = torch.where(flags(len(rows), share), 0, 1 + torch.arange(len(rows)) // 4 % 3)
    words = cuts.packed(cuts.ends_of_runs(ids, 0, row_example(offsets, rows)))
    operands = words, cuts.packed(ids != 0), offsets, rows, True, True
    assert_same(scan(*operands), scan_by_torch(*operands))


@EACH_LENGTH
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("at_most", [1, 2, 7, 5000])
def test_at_most(lengths: tuple[int, ...], share: float, at_most: int) -> None:
    offsets, rows = offsets_of(lengths), torch.empty(sum(lengths))
    given = flags(len(rows), share)
    want = cuts.packed(cuts.capped(given, row_example(offsets, rows), at_most))
    assert torch.equal(capped(cuts.packed(given), offsets, rows, at_most), want)


@pytest.mark.parametrize("seed", range(20))
def test_any_examples(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    most = (3, 40, 700, 3000)[seed % 4]
    lengths = torch.randint(0, most, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator)
    offsets = offsets_of(tuple(lengths.tolist()))
    rows = torch.empty(int(offsets[-1]))
    words = cuts.packed(flags(len(rows), float(torch.rand((), generator=generator)) ** 3, seed))
    words = capped(words, offsets, rows, 1 + seed)
    found = scan(words, None, offsets, rows, True, True)
    assert_same(found, scan_by_torch(words, None, offsets, rows, True, True))
    first = cuts.first_rows(cuts.unpacked(words, len(rows)), None, row_example(offsets, rows))
    among = cuts.offsets_among(cuts.begins_of(found.bounds), offsets)
    assert torch.equal(among, cuts.cut_offsets(first, offsets))


def test_more_words_than_are_counted_at_a_time() -> None:
    """Ten thousand equal bytes and more: one segment, or segments of as many rows as they may have."""
    rows = torch.empty(32 * BLOCK_W + 10_000)
    words, offsets = cuts.packed(torch.zeros(len(rows), dtype=torch.bool)), offsets_of((len(rows),))
    assert scan(words, None, offsets, rows, False, False).bounds.tolist() == [0, len(rows)]
    bounds = scan(capped(words, offsets, rows, 100), None, offsets, rows, False, False).bounds
    assert torch.equal(bounds, torch.arange(0, len(rows) + 100, 100, dtype=torch.int32).clamp(max=len(rows)))


def test_what_was_not_asked_for_is_not_made() -> None:
    rows = torch.empty(9)
    found = scan(cuts.packed(flags(9, 0.5)), None, offsets_of((4, 5)), rows, False, True)
    assert [len(found.own), len(found.closed), len(found.before), len(found.rows)] == [9, 0, 9, 0]


# -- operators ---------------------------------------------------------------------------------------------------------


def test_operators() -> None:
    words, inside = cuts.packed(flags(70, 0.2)), cuts.packed(flags(70, 0.5, 1))
    offsets = offsets_of((30, 0, 40))
    for gaps in (None, inside):
        torch.library.opcheck(cut_scans._scan, (words, gaps, offsets, 70, True, gaps is None))
    torch.library.opcheck(cut_scans._capped, (words, offsets, 70, 3))


def test_operators_compiled_and_exported() -> None:
    def run(words: Tensor, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        found = scan(capped(words, offsets, rows, 5), None, offsets, rows, True, False)
        return found.bounds * 2, found.closed + found.own

    given = cuts.packed(flags(70, 0.2)), torch.empty(70), offsets_of((30, 0, 40))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*given), run(*given), strict=True):
        assert torch.equal(got, want)

    class Module(torch.nn.Module):
        def forward(self, words, rows, offsets):
            return run(words, rows, offsets)

    dynamic = tuple({0: torch.export.Dim(name, min=2, max=4096)} for name in ("words", "rows", "examples"))
    exported = torch.export.export(Module(), given, dynamic_shapes=dynamic).module()
    given = cuts.packed(flags(99, 0.1)), torch.empty(99), offsets_of((1, 2, 0, 96))
    for got, want in zip(exported(*given), run(*given), strict=True):
        assert torch.equal(got, want)


def test_the_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    words, offsets, rows = cuts.packed(flags(70, 0.2)), offsets_of((30, 0, 40)), torch.empty(70)
    want = scan(words, None, offsets, rows, True, True), capped(words, offsets, rows, 3)
    monkeypatch.setattr(cut_scans, "launches", lambda x: False)
    assert_same(scan(words, None, offsets, rows, True, True), want[0])
    assert torch.equal(capped(words, offsets, rows, 3), want[1])


# -- the pass ----------------------------------------------------------------------------------------------------------

FLAGS = "x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f{}; p = pool(x, seq -> patch, by=max)"
IDS = "x: real[seq, dim], i: id[seq] in vocab or none; segment seq into patch by i; p = pool(x, seq -> patch, by=sum)"
TEXTS = {
    "flags": FLAGS.format("") + " => spread(p, patch -> seq, closed) + spread(p, patch -> seq, before)",
    "at most": FLAGS.format(", at most 3") + " => spread(p, patch -> seq, own) * real(index(patch))",
    "a rule": (
        "x: real[seq, dim], s: real[seq]; "
        "segment seq into patch ends where s - previous(s) > 0.3 or position(seq) == 0; "
        "p = pool(x, seq -> patch, by=mean) => x + spread(p, patch -> seq, closed)"
    ),
    "a rule of reduced rows": (
        "x: real[seq, dim]; segment seq into patch ends where mean(x, over=dim) > 0; "
        "p = pool(x, seq -> patch, by=last) => x + spread(p, patch -> seq, closed)"
    ),
    "flags that are read": (
        FLAGS.format(", at most 2") + " => spread(p, patch -> seq, closed) * real(index(patch, closed)) * real(f)"
    ),
    "two cuts": (
        FLAGS.format(", at most 4")
        + "; segment seq into line ends where sum(x, over=dim) > 0; r = pool(x, seq -> line, by=max) => "
        "spread(p, patch -> seq, closed) - spread(r, line -> seq, closed)"
    ),
    "gaps": IDS + " => spread(p, patch -> seq, closed) + spread(p, patch -> seq) * real(index(patch))",
    "attention": (
        FLAGS.format("") + "; q = attend(p, p, p, over=dim, along=patch, mask=causal); "
        "r = attend(q, x, x, over=dim, along=seq, mask=same(patch)) => spread(r, patch -> seq, closed)"
    ),
}
# What torch computed of flags, in 64 bits and a pass for each.
LEFT_TO_THE_SCAN = (
    cuts.capped, cuts.first_rows, cuts.begins, cuts.bounds, cuts.rows_inside, cuts.bounds_inside, cuts.cut_offsets,
    cuts.own, cuts.before, cuts.closed, cuts.index_or_next,
)  # fmt: skip


def graphs(text: str, dtype: torch.dtype = torch.float64) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The reference graph, and the same after the passes for a GPU."""
    source = "axis line cut from seq\n" + op_samples.spec(text)
    program = check(Source("cuts.weft", source), OPS).value().models["m"]
    reference = op_samples.module(program, dtype)
    return reference, optimise(reference, GPU_PASSES)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_graphs(text: str) -> None:
    """No plan of a cut is left to torch, and what comes out is the same to the last decision."""
    reference, made = graphs(text)
    assert not [node for node in made.graph.nodes if node.target in LEFT_TO_THE_SCAN]
    assert [node for node in made.graph.nodes if node.target is scan]
    attach_kernels(made)
    source = "axis line cut from seq\n" + op_samples.spec(text)
    program = check(Source("cuts.weft", source), OPS).value().models["m"]
    for rows in (1, 60, 63, 120):
        lengths = {"seq": (0, 1, rows, 0, 3, 0), "other": (1, 0, 2, 1, 1, 0)}
        inputs = op_samples.inputs(program, lengths, dtype=torch.float64)
        arguments = op_samples.arguments(reference, inputs, lengths)
        got, want = gradients(made, arguments), gradients(reference, arguments)
        assert_equal(got[0][0], want[0][0], "result", 1e-9)
        for name in want[1]:
            assert_equal(got[1][name], want[1][name], f"gradient of {name}", 1e-9)


def test_the_rule_packs_its_flags() -> None:
    """One kernel reads surprise and writes a bit for each row."""
    _, made = graphs(TEXTS["a rule"], torch.float32)
    (node,) = (node for node in made.graph.nodes if node.target is scan)
    op = node.args[0].target
    assert isinstance(op, FusedOp)
    assert op.forward.block_rows % 32 == 0
    assert [result.is_packed for result in op.program.results] == [True]
    _, made = graphs(TEXTS["a rule of reduced rows"], torch.float32)
    (node,) = (node for node in made.graph.nodes if node.target is scan)
    # A program that holds all of a row has too few rows for a word: another packs what it decided.
    assert [node.args[0].target.program.sources[0].dtype] == [torch.bool]


def test_numbers_that_are_counted_with_are_wide() -> None:
    """A reader that is no gather gets int64."""
    reference, _ = graphs(TEXTS["flags"])
    closed = next(node for node in reference.graph.nodes if node.target is cuts.closed)
    with reference.graph.inserting_after(closed):
        counted_with = reference.graph.call_function(operator.mul, (closed, 1000000007))
    reference.graph.output_node().args = ((counted_with,),)
    made = optimise(reference, GPU_PASSES)
    assert [node for node in made.graph.nodes if node.target is cuts.wide]
    attach_kernels(made)
    x, f, offsets = torch.zeros(4000, 5, dtype=torch.float64), flags(4000, 0.5), offsets_of((4000,))
    arguments = [
        {"x": x, "f": f}.get(name, offsets) for name in (n.target for n in made.graph.find_nodes(op="placeholder"))
    ]
    assert torch.equal(made(*arguments)[0], 1000000007 * (f.cumsum(0) - 1))


def test_an_artifact_has_all_that_the_scan_needs() -> None:
    files = copied_modules([("gpu", "cut_scans")])
    assert {"gpu/cut_scan_kernels.py", "gpu/segments.py", "functions/cuts.py", "functions/packing.py"} <= files.keys()


# -- as others see them ------------------------------------------------------------------------------------------------

KINDS = (CutScan(SCAN), CutScan(SCAN, closed=True), CutScan(SCAN, True, True, True), CutScan(CAP))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_no_spills(target: str) -> None:
    for made in compile_ahead([cut_scan_kernel(kind) for kind in KINDS], [target]):
        assert problems(made) == [], made.kernel


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_planned_bytes_are_those_that_move(kind: CutScan) -> None:
    lengths = (4096, 0, 4096)
    rows, offsets = torch.empty(sum(lengths)), offsets_of(lengths)
    words = cuts.packed(torch.arange(len(rows)) % 4 == 3)
    with counted() as launches:
        if kind.name == CAP:
            capped(words, offsets, rows, 4)
        else:
            scan(words, torch.full_like(words, -1) if kind.has_gaps else None, offsets, rows, kind.closed, kind.before)
    (launch,) = launches
    planned = cut_scan_work(kind, len(rows), len(lengths))
    assert launch.kernel == kind.name
    # Nobody asks where the last example ends before segments have as many rows as they may.
    unread = 4 * (kind.name == CAP)
    assert sum(touched.distinct_read for touched in launch.arguments.values()) == planned.read - unread
    assert sum(touched.written for touched in launch.arguments.values()) == planned.written
