"""Generated attention kernels against float64, by Triton's interpreter; the ops that launch them under torch's own
tools; what they need on GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.attention_cases import CACHED, CASES, cached_errors, errors
from weft.codegen.functions.attention import attend_packed
from weft.codegen.gpu import attention, attention_decode, attention_kernels, intervals
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.attention_form import AttentionForm, Captured, read_form
from weft.codegen.gpu.formula import FUNCTIONS, Apply, Number, Row, Score, derivative, evaluate, from_tuple
from weft.codegen.score.configurations import candidate_configurations, default_configuration
from weft.codegen.score.cost import Rows, decode_cost, kernel_cost
from weft.codegen.score.decode import DECODE_KERNELS, DecodePlan
from weft.codegen.score.kernels import KERNELS, kernel_text
from weft.codegen.score.load import connect
from weft.codegen.score.plan import AttentionPlan
from weft.runtime.ahead_of_time import compile_ahead, problems

HERE = Path(__file__).resolve().parent
# Of outputs and of gradients, relative to the largest entry.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (4e-3, 1e-2),
}


# Triton's interpreter has been chosen in conftest.py, before Triton is imported.
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def kernels() -> None:
    pytest.importorskip("triton", reason="kernels are Triton's")
    connect()


@pytest.fixture(params=["kernels", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: with kernels, and as on a machine that has none."""
    if request.param == "torch":
        monkeypatch.setattr(attention_kernels, "_is_interpreting", lambda: False)


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_float64(name: str) -> None:
    case = CASES[name]
    found = errors(case)
    assert set(found) == {"output", "q", "k", "v", *case.read, *(("bias",) if case.bias_heads else ())}
    output, gradient = TOLERANCES[case.dtype]
    wrong = {what: error for what, error in found.items() if not error <= (output if what == "output" else gradient)}
    assert not wrong


@pytest.mark.parametrize("seed", range(6))
def test_gradients_of_the_result_as_it_was_rounded(seed: int) -> None:
    """In bfloat16 the one rounding that a gradient has besides those of other regions is that of the stored result,
    which it reads (verify.py, READS_RESULT): from that result they are as close as any."""
    lengths, heads, size = (1, 7, 3, 5), 4, 16
    drawn = torch.Generator().manual_seed(seed)
    rows = [torch.randn(sum(lengths), heads, size, generator=drawn).mul(1.3).bfloat16() for _ in range(4)]
    q, k, v, d_out = rows
    for one in (q, k, v):
        one.requires_grad_()
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    attend(q, k, v, offsets, offsets, size**-0.5, high=0).backward(d_out)
    each = _gradients([x.detach().double() for x in rows], lengths)
    want = [torch.cat(parts) for parts in zip(*each, strict=True)]
    for found, exact in zip((q.grad, k.grad, v.grad), want, strict=True):
        assert found is not None
        assert (found.double() - exact).abs().max() <= TOLERANCES[torch.bfloat16][1] * exact.abs().max()


def _gradients(rows: list[Tensor], lengths: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Of q, k and v, for each example, causal: exact but for the result, which is bfloat16. `rows`: q, k, v, d_out."""
    found = []
    for one in zip(*(x.split(lengths) for x in rows), strict=True):
        q_HQD, k_HKD, v_HKD, d_HQD = (x.transpose(0, 1) for x in one)
        scale, causal = q_HQD.shape[-1] ** -0.5, torch.ones(q_HQD.shape[1], q_HQD.shape[1]).tril().bool()
        weights = (q_HQD @ k_HKD.mT * scale).masked_fill(~causal, -torch.inf).softmax(-1)
        result = (weights @ v_HKD).bfloat16().double()
        slopes = weights * (d_HQD @ v_HKD.mT - (result * d_HQD).sum(-1, keepdim=True)) * scale
        made = (slopes @ k_HKD, slopes.mT @ q_HQD, weights.mT @ d_HQD)
        found.append(tuple(x.transpose(0, 1) for x in made))
    return found


@pytest.mark.parametrize("name", CACHED)
def test_cached_rows_agree_with_float64(name: str) -> None:
    found = cached_errors(CACHED[name])
    assert set(found) == {"output", "three rows"}
    assert max(found.values()) <= TOLERANCES[CACHED[name].dtype][0]


@pytest.mark.parametrize(
    "name",
    [
        "slopes, double",
        "no interval",
        "causal or same segment",
        "causal, fp16",
        "several entries, double",
    ],
)
def test_torch_computes_the_same_where_there_are_no_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "_is_interpreting", lambda: False)
    test_kernels_agree_with_float64(name)


# -- the ops under torch's tools -------------------------------------------------------------------


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(11, heads, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    return q, k, v, torch.tensor([0, 5, 5, 6, 11], dtype=torch.int32)


def _arguments(has_bias: bool) -> tuple[Any, ...]:
    q, k, v, offsets = _inputs()
    bounds = intervals.band_intervals(offsets, offsets, 11, 11, low=-2, high=0)
    entry = ("entry", 2, ("mod", ("key", 3), ("number", 5)))
    score = from_tuple(("+", ("score",), ("*", ("query", 0), ("+", entry, ("tanh", ("key", 1))))))
    captured = (
        Captured("query", "fp64", True, True), Captured("key", "fp64", False, False),
        Captured("table", "fp64", True, True, 5), Captured("key", "i64", False, False),
    )  # fmt: skip
    given = [
        torch.randn(11, 4, dtype=torch.float64, requires_grad=True), torch.randn(11, dtype=torch.float64),
        torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.arange(11),
    ]  # fmt: skip
    bias = torch.randn(11, 4, dtype=torch.float64, requires_grad=True) if has_bias else None
    form = AttentionForm(0.3, score, None, captured)
    return (
        q, k, v, bounds.queries.low, bounds.queries.high, bounds.keys.low, bounds.keys.high, bias, given, form.text,
    )  # fmt: skip


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("has_bias", [False, True])
def test_ops_are_registered_well(has_bias: bool) -> None:
    arguments = _arguments(has_bias)
    torch.library.opcheck(attention.attention_forward, arguments)
    run = attention.attention_forward
    assert torch.autograd.gradcheck(lambda q: run(q, *arguments[1:])[0], arguments[0], fast_mode=True)
    plain = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    plain[8] = [t.detach() for t in arguments[8]]
    out, lse = attention.attention_forward(*plain)
    torch.library.opcheck(attention.attention_backward, (torch.randn_like(out), out, lse, *plain))


@pytest.mark.usefixtures("either")
def test_the_cached_op_is_registered_well() -> None:
    q, cache = torch.randn(2, 1, 4, 8), torch.randn(2, 2, 9, 8)
    form = AttentionForm(0.3).text
    arguments = (q, cache, cache.clone(), torch.tensor([3, 12]), 9, -5, 0, form, [])
    torch.library.opcheck(attention_decode.attention_decode, arguments)


def _model(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    ids = torch.arange(q.shape[0], device=q.device) // 2
    same = ("or", ("==", ("query", ids), ("key", ids)), ("<", ("key", "position"), ("number", 2)))
    capped = ("*", ("number", 2.0), ("tanh", ("/", ("score",), ("number", 2.0))))
    return attend(q * 1.0, k, v, offsets, offsets, 0.5, high=0, predicate=same, score=capped)


@pytest.mark.usefixtures("either")
def test_compiled_whole() -> None:
    """By `attend` alone, and with shapes that change."""
    compiled = torch.compile(_model, fullgraph=True, backend="aot_eager", dynamic=True)
    q, k, v, offsets = _inputs()
    shorter = [t[:6].detach().requires_grad_() for t in (q, k, v)]
    for tensors, ends in (([q, k, v], offsets), (shorter, offsets[:4])):
        q, k, v = tensors
        found, wanted = compiled(q, k, v, ends), _model(q, k, v, ends)
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(y.square().sum(), tensors) for y in (found, wanted)]
        torch.testing.assert_close(*gradients)


def test_exported_and_read_back(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
            return attend(q, k, v, offsets, offsets, 0.5, high=0)

    q, k, v, offsets = (t.detach() for t in _inputs())
    rows, count = torch.export.Dim("rows", min=2), torch.export.Dim("ends", min=2)
    shapes = ({0: rows}, {0: rows}, {0: rows}, {0: count})
    program = torch.export.export(Model(), (q, k, v, offsets), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "attention.pt2")
    again = torch.export.load(tmp_path / "attention.pt2").module()
    assert "attention_forward" in program.graph_module.code
    for rows_kept, ends_kept in ((11, 5), (6, 4), (5, 2)):
        shorter, ends = [t[:rows_kept] for t in (q, k, v)], offsets[:ends_kept]
        wanted = attend_packed(shorter[0], shorter[1], shorter[2], ends, ends, 0.5, high=0)
        torch.testing.assert_close(again(*shorter, ends), wanted)


@pytest.mark.usefixtures("either")
def test_checkpointing_computes_the_same() -> None:
    q, k, v, offsets = _inputs()
    plain = torch.autograd.grad(_model(q, k, v, offsets).square().sum(), (q, k, v))
    out = checkpoint(_model, q, k, v, offsets, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (q, k, v)), plain)


# -- what kernels are made of ----------------------------------------------------------------------


def test_bounds_say_the_same_from_both_sides() -> None:
    """And the same as comparing every pair."""
    q_offsets = torch.tensor([0, 5, 5, 6, 20], dtype=torch.int32)
    k_offsets = torch.tensor([0, 2, 9, 9, 17], dtype=torch.int32)
    q_rows, k_rows = 22, 17  # two rows behind the last example
    for low, high in ((None, None), (None, 0), (-3, 2), (1, 4), (-9, -7)):
        found = intervals.band_intervals(q_offsets, k_offsets, q_rows, k_rows, low, high)
        same = intervals.row_examples(q_offsets, q_rows)[:, None] == intervals.row_examples(k_offsets, k_rows)
        same &= (torch.arange(q_rows) < 20)[:, None]
        key, query = intervals.row_positions(k_offsets, k_rows), torch.arange(q_rows)
        query = query - q_offsets[intervals.row_examples(q_offsets, q_rows).clamp(max=3)]
        distance = key[None, :] - query[:, None]
        wanted = (
            same & (distance >= (low if low is not None else -99)) & (distance <= (high if high is not None else 99))
        )
        assert torch.equal(_pairs(found.queries, k_rows), wanted)
        assert torch.equal(_pairs(found.keys, q_rows).T, wanted)


def test_bounds_of_runs_with_gaps() -> None:
    offsets = torch.tensor([0, 7, 7, 12], dtype=torch.int32)
    ids = torch.tensor([-1, 0, 0, -1, 1, 1, 2, 0, 0, 1, -1, -1])
    found = intervals.run_intervals(ids, ids, offsets, offsets)
    example = intervals.row_examples(offsets, 12)
    wanted = (ids[:, None] == ids) & (ids >= 0) & (example[:, None] == example)
    assert torch.equal(_pairs(found.queries, 12), wanted)
    assert torch.equal(_pairs(found.keys, 12).T, wanted)
    causal = intervals.band_intervals(offsets, offsets, 12, 12, high=0)
    lower = (torch.arange(12)[:, None] >= torch.arange(12)) & (example[:, None] == example)
    either = intervals.either(causal, found)
    assert torch.equal(_pairs(either.queries, 12), wanted | lower)
    assert torch.equal(_pairs(either.keys, 12).T, wanted | lower)
    both = intervals.both(causal, found)
    assert torch.equal(_pairs(both.queries, 12), wanted & lower)
    assert torch.equal(_pairs(both.keys, 12).T, wanted & lower)


def _pairs(bounds: intervals.Bounds, columns: int) -> Tensor:
    numbers = torch.arange(columns)
    return (numbers >= bounds.low[:, None]) & (numbers < bounds.high[:, None])


def test_a_form_is_read_back_from_its_text() -> None:
    score = from_tuple(("where", ("<=", ("query", 0), ("number", 3)), ("score",), ("neg", ("key", 1))))
    form = AttentionForm(0.1, score, from_tuple(("not", ("==", ("key", 2), ("number", 1)))), (), False)
    assert read_form(form.text) == form


# Without a derivative, in torch or at all.
NOT_SMOOTH = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "not", "floordiv"}


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - NOT_SMOOTH))
def test_derivatives_of_formulas(name: str) -> None:
    """By the score and by captured values, against autograd; ties included."""
    score = torch.tensor([0.3, 1.0, 2.5, 0.7], dtype=torch.float64, requires_grad=True)
    read = torch.tensor([0.9, 1.0, 0.4, 1.1], dtype=torch.float64, requires_grad=True)
    inner = Apply("*", (Score(), Apply("+", (Score(), Number(0.2)))))
    arguments = {
        "where": (Apply(">", (Score(), Row("query", 0))), inner, Row("query", 0)),
        "min": (Score(), Row("query", 0)),
        "max": (Score(), Row("query", 0)),
    }.get(name, (inner, Row("query", 0)))
    count = FUNCTIONS[name].text.count("{}")
    formula = Apply(name, arguments[:count])
    value = evaluate(formula, score, lambda _: read, torch.float64)
    wanted = torch.autograd.grad(
        (value + 0 * (score + read)).sum(), (score, read), allow_unused=True, materialize_grads=True
    )
    for by, gradient in zip((Score(), Row("query", 0)), wanted, strict=True):
        found = evaluate(derivative(formula, by), score, lambda _: read, torch.float64)
        torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64).expand(4), gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "form"),
    [
        *((target, ()) for target in ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")),
        # Each twice, for time.
        ("cuda:80", ("bucketed", "64")), ("cuda:100", ("bucketed", "64")), ("cuda:90", ("bucketed", "128")),
        ("hip:gfx942", ("bucketed", "128")),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)  # fmt: skip
def test_no_register_is_spilled_for_common_heads(target: str, form: tuple[str, ...], tmp_path: Path) -> None:
    """bf16 heads of 128 entries, in the default configurations, on GPUs that are not here; and of 64 and 128, where the
    score reads a trained table."""
    pytest.importorskip("triton", reason="compiles with Triton")
    names = [*KERNELS, *DECODE_KERNELS]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parent), "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, HERE / "attention_compiled.py", target, *form, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert set(found) == set(names)
    shared = {"cuda:80": 99, "hip:gfx942": 64}.get(target, 227) * 1024
    for name, needs in found.items():
        assert needs["spills"] == 0, name
        assert needs["shared"] <= shared, name
        assert needs["products"] > 0 or name in ("attention_delta", "attention_merge"), name


@pytest.mark.slow
@pytest.mark.parametrize(("width", "target"), [(160, "cuda:90"), (72, "cuda:100")])
def test_no_register_is_spilled_for_heads_of_two_parts(width: int, target: str) -> None:
    """Some of those that did in the tile of a head of one part; `bench/aot.py --heads` compiles all widths."""
    plan = AttentionPlan(AttentionForm(width**-0.5), "bf16", 32, 8, width, width, None)
    kernels = [kernel_text(plan, name, target) for name in KERNELS if name != "attention_delta"]
    for made in compile_ahead(kernels, [target]):
        assert problems(made) == [], made.kernel


def test_cost_counts_every_tensor_once() -> None:
    plan = AttentionPlan(AttentionForm(0.1), "bf16", 4, 2, 16, 8, "fp32")
    rows = Rows(queries=10, keys=7, pairs=30)
    cost = kernel_cost(plan, "attention_forward", rows)
    q, k, v, out = 10 * 4 * 16, 7 * 2 * 16, 7 * 2 * 8, 10 * 4 * 8
    assert cost.bytes == 2 * (q + k + v + out) + 4 * (10 * 4 + 7 * 4 + 2 * 10)
    assert cost.flops == 2 * 30 * 4 * (16 + 8)
    backward = [kernel_cost(plan, name, rows) for name in KERNELS if name != "attention_forward"]
    # Scores and their gradient are computed for queries and for keys: seven products in place of the five of theory.
    assert sum(c.flops for c in backward) == 2 * 30 * 4 * (4 * 16 + 3 * 8)
    cached = decode_cost(DecodePlan(plan, 1, None, 0), "attention_decode", sequences=3, cached=50, splits=2)
    assert cached.bytes == 2 * (3 * 4 * 16 + 50 * 2 * (16 + 8)) + 8 * 3 + 4 * (2 * 3 * 4 * (8 + 2))


@pytest.mark.parametrize("name", ["attention_forward", "attention_query_gradient", "attention_key_gradient"])
@pytest.mark.parametrize("target", ["cuda:80", "cuda:89", "cuda:90", "cuda:100", "hip:gfx942"])
def test_candidates_begin_with_the_default(target: str, name: str) -> None:
    for width in (64, 80, 128, 160, 256):
        plan = AttentionPlan(AttentionForm(0.1), "bf16", 4, 2, width, width, None)
        candidates = candidate_configurations(plan, name, target)
        assert candidates[0] == default_configuration(plan, name, target)
        assert len(set(candidates)) == len(candidates) > 8
