"""Statistics of a linear's outputs: kernels against float64, what they keep in memory, and which specs get them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import op_samples
from tests.fused_models import assert_equal, gradients
from weft.codegen.emit import Imports
from weft.codegen.emit_kernels import kernels_text, render
from weft.codegen.facts import facts
from weft.codegen.gpu import logits_torch
from weft.codegen.gpu.logits import Logits
from weft.codegen.gpu.logits_blocks import MOST_ENTRIES, blocks
from weft.codegen.gpu.logits_form import LogitsForm
from weft.codegen.logits.cost import logits_work
from weft.codegen.logits.op import LogitsOp
from weft.codegen.logits.text import kernel_texts
from weft.codegen.passes.streamed_logits import stream_logits_on_gpu
from weft.codegen.pipeline import BASIC_PASSES, GPU_PASSES, Pass, optimise
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.runtime.kernels import _load, attach_kernels

LOSS = LogitsForm(picks=1)
# Of no column it makes a number like any other.
CAP = "('*', ('number', 2.0), ('tanh', ('/', ('score',), ('number', 2.0))))"
FORMS = {
    "loss": LOSS,
    "loss of a linear with a bias": LogitsForm(picks=1, has_bias=True, gradients=("x", "weight", "bias")),
    "entropy": LogitsForm(mean=True),
    "everything": LogitsForm(mean=True, place=True, picks=2, has_bias=True, gradients=("x", "weight", "bias")),
    "a frozen head": LogitsForm(picks=1, gradients=("x",)),
    "argmax alone": LogitsForm(partition=False, place=True, gradients=()),
    "a soft cap": LogitsForm(picks=1, change=CAP),
    "everything of a soft cap": LogitsForm(
        mean=True, place=True, picks=2, has_bias=True, gradients=("x", "weight", "bias"), change=CAP
    ),
}
# The gradient of the largest is made from logits that must be equal forward and backward.
BLOCK_FORMS = FORMS | {
    "largest": LogitsForm(partition=False, top=True),
    "all with it": LogitsForm(True, True, True, True),
    "largest of a soft cap": LogitsForm(top=True, change=CAP),
}
# Rows, width, vocabulary: sizes that miss every tile, one row, none.
SIZES = [(63, 60, 257), (500, 33, 1000), (1, 16, 257), (0, 16, 257)]
WAYS = [("blocks", form) for form in BLOCK_FORMS] + [("tiles", form) for form in FORMS]
# Of the largest entry: results, gradients.
LIMITS = {torch.float64: (1e-11, 1e-11), torch.float32: (1e-5, 1e-5), torch.bfloat16: (4e-3, 1e-2)}
# Cuts both sides of most of the sizes.
ENTRIES = 256 * 256


def call_of(form: LogitsForm, width: int, vocabulary: int, dtype: torch.dtype, way: str) -> Logits:
    op = LogitsOp("head", form, width, vocabulary, dtype, in_tiles=way == "tiles")
    made = _load(kernels_text([op], Imports(home="weft.codegen."), "of a test")).head
    # Tiles that suit the interpreter, whose time goes by programs; in blocks they reach beyond their columns.
    columns = 128 if way == "tiles" else 512
    bigger = {role: replace(getattr(made, role), block_m=32, block_v=columns) for role in op.kernels.launched}
    return replace(made, name=f"head_{ENTRIES}", entries=ENTRIES, **bigger)


def operands(form: LogitsForm, rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + vocabulary)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    ids = [torch.randint(vocabulary, (rows,), generator=generator) for _ in range(form.picks)]
    bias = [draw(vocabulary)] if form.has_bias else []
    return [draw(rows, width), 0.3 * draw(vocabulary, width), *bias, *ids]


def results(found: object) -> list[Tensor]:
    return list(found) if isinstance(found, tuple | list) else [found]  # pyright: ignore[reportReturnType]


def oracle(form: LogitsForm, given: Sequence[Tensor]) -> dict[str, Tensor]:
    x, weight, *rest = given
    logits = x @ weight.t() + (rest[0] if form.has_bias else 0)
    if form.change is not None:
        assert form.change == CAP
        logits, form = 2 * torch.tanh(logits / 2), replace(form, change=None)
    return logits_torch.whole(form, logits, rest[form.has_bias :])


def both(call: Logits, given: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Results by name, gradients by owner, and the gradients of the results that were used."""
    form = call.form
    names: tuple[str, ...] = ("x", "weight", "bias") if form.has_bias else ("x", "weight")
    owners: dict[str, Tensor] = dict(zip(names, given, strict=False))
    leaves = {name: owners[name].clone().requires_grad_() for name in form.gradients}
    found = dict(zip(form.results, results(call(*[leaves.get(name, x) for name, x in owners.items()],
                                                *given[len(owners) :])), strict=True))  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    seeds = [torch.randn(len(given[0]), generator=generator, dtype=torch.float64) for _ in form.differentiable]
    # Some rows are not counted.
    seeds = [seed * (torch.arange(len(seed)) % 5 > 0) for seed in seeds]
    if not form.gradients:
        assert not any(result.requires_grad for result in found.values())
        return found, {}, seeds
    wanted = [found[name] for name in form.differentiable]
    grads = torch.autograd.grad(
        wanted, list(leaves.values()), [s.to(w.dtype) for s, w in zip(seeds, wanted, strict=True)]
    )
    return found, dict(zip(leaves, grads, strict=True)), seeds


# The interpreter takes seconds for the largest size in tiles.
CASES = [
    (*way, size)
    for way in WAYS
    for size in SIZES
    if size[0] < 500 or way[0] == "blocks" or way[1] in ("loss", "everything")
]


@pytest.mark.parametrize(("way", "form", "size"), CASES, ids=str)
def test_against_float64(way: str, form: str, size: tuple[int, int, int]) -> None:
    check_against_float64(call_of(BLOCK_FORMS[form], *size[1:], torch.float32, way), size, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("way", "form"), [("blocks", "all with it"), ("blocks", "loss"), ("tiles", "everything")])
def test_other_types(way: str, form: str, dtype: torch.dtype) -> None:
    for size in SIZES[:1] if way == "tiles" else SIZES[:2]:
        check_against_float64(call_of(BLOCK_FORMS[form], *size[1:], dtype, way), size, dtype)


def check_against_float64(call: Logits, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    form = call.form
    given = operands(form, *size, dtype)
    got, got_grads, seeds = both(call, given)
    wide = [x.double().requires_grad_() if x.is_floating_point() else x for x in given]
    want = oracle(form, wide)
    limit, gradient_limit = LIMITS[dtype]
    real = torch.promote_types(dtype, torch.float32)
    for name in form.results:
        assert got[name].dtype == {"place": torch.int64, "ties": torch.int32}.get(name, real), name
        assert_equal(got[name], want[name], name, limit)
    if form.gradients:
        total = sum((want[n] * s).sum() for n, s in zip(form.differentiable, seeds, strict=True))
        assert isinstance(total, Tensor)
        total.backward()
    for name, place in (("x", 0), ("weight", 1), ("bias", 2)):
        if name in form.gradients:
            assert got_grads[name].dtype == dtype
            assert_equal(got_grads[name], wide[place].grad, f"gradient of {name}", gradient_limit)


@pytest.mark.parametrize("way", ["blocks", "tiles"])
def test_two_runs_are_equal(way: str) -> None:
    call = call_of(LOSS, 33, 257, torch.float32, way)
    given = operands(LOSS, 200, 33, 257, torch.float32)
    one, two = both(call, given), both(call, given)
    for name in LOSS.results:
        assert torch.equal(one[0][name], two[0][name])
    for name in LOSS.gradients:
        assert torch.equal(one[1][name], two[1][name])


def test_equal_largest_share_the_gradient_and_the_first_is_the_place() -> None:
    form = LogitsForm(partition=False, top=True, place=True)
    call = call_of(form, 16, 257, torch.float32, "blocks")
    # Whole numbers: sums are exact in any order, so that equal logits are equal everywhere.
    x, weight = ((3 * t).round() for t in operands(form, 9, 16, 257, torch.float32))
    weight[5] = weight[130] = weight[256] = 4 * x[3]
    x[3] *= 2
    x[7] = 0
    got, grads, seeds = both(call, [x, weight])
    assert got["ties"][[3, 7]].tolist() == [3, 257]
    assert got["place"][[3, 7]].tolist() == [5, 0]
    wide = [x.double().requires_grad_(), weight.double().requires_grad_()]
    (oracle(form, wide)["top"] * seeds[0]).sum().backward()
    for name, one in zip(("x", "weight"), wide, strict=True):
        assert_equal(grads[name], one.grad, f"gradient of {name}", 1e-5)


def test_large_and_absent_logits() -> None:
    """No overflow; a bias of -inf takes an entry out."""
    form = LogitsForm(mean=True, picks=1, has_bias=True, gradients=("x", "weight", "bias"))
    for way in ("blocks", "tiles"):
        call = call_of(form, 16, 257, torch.float64, way)
        x, weight, bias, ids = operands(form, 20, 16, 257, torch.float64)
        bias[100:140] = float("-inf")
        got, grads, seeds = both(call, [1000 * x, weight, bias, ids % 100])
        kept = torch.cat([torch.arange(100), torch.arange(140, 257)])
        wide = [t.double().requires_grad_() for t in (1000 * x, weight, bias)]
        logits = (wide[0] @ wide[1].t() + wide[2])[:, kept]
        want = logits_torch.whole(form, logits, [ids % 100])
        for name in form.results:
            assert_equal(got[name], want[name], name, 1e-10)
        total = sum((want[n] * s).sum() for n, s in zip(form.differentiable, seeds, strict=True))
        assert isinstance(total, Tensor)
        total.backward()
        for name, one in zip(("x", "weight", "bias"), wide, strict=True):
            assert_equal(grads[name], one.grad, f"gradient of {name}", 1e-10)


# -- memory ------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most bytes of any tensor made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("way", "rows"), [("blocks", 700), ("blocks", 2000), ("tiles", 300)])
def test_no_memory_holds_the_logits(way: str, dtype: torch.dtype, rows: int) -> None:
    """Blocks of the asked size, whichever side is cut; the largest tensor is then a block or an operand."""
    width, vocabulary = 8, 1000
    call = call_of(LOSS, width, vocabulary, dtype, way)
    if rows > 1000:
        call = replace(call, entries=4 * ENTRIES)
    given = operands(LOSS, rows, width, vocabulary, dtype)
    kept, grad = torch.zeros(rows), torch.ones(rows)
    with Largest() as largest:
        call._forward(*given)
        call._gradients(*given, kept, grad, grad)
    block = call.blocks(*given[:2])
    allowed = 4 * max(block.rows * block.columns, width * max(rows, vocabulary))
    assert 0 < largest.size <= allowed < 2 * rows * vocabulary


@pytest.mark.parametrize("rows", [1, 2048, 32768, 1 << 20])
def test_blocks_at_real_size(rows: int) -> None:
    """OLMo 2 7B: bounded, no slivers, everything once."""
    cut = blocks(rows, 100352, 4096)
    assert cut.rows * cut.columns <= MOST_ENTRIES
    assert cut.rows == rows or cut.rows >= 1024
    assert cut.columns >= 1024
    if rows >= 2048:
        assert cut.rows * cut.columns <= rows * 100352 / 10
    counted = sum((r.stop - r.start) * (c.stop - c.start) for r, c in cut)
    assert counted == rows * 100352


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (1, 1), (300, 1000), (1000, 300), (129, 129)])
def test_blocks_cover_every_entry_once(rows: int, columns: int) -> None:
    seen = torch.zeros(rows, columns)
    for r, c in blocks(rows, columns, 16, 128 * 128):
        seen[r, c] += 1
    assert torch.equal(seen, torch.ones(rows, columns))


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "form"), [("blocks", "all with it"), ("tiles", "everything"), ("blocks", "argmax alone")]
)
def test_opcheck(way: str, form: str) -> None:
    call = call_of(BLOCK_FORMS[form], 12, 257, torch.float64, way)
    given = operands(call.form, 9, 12, 257, torch.float64)
    owners = ("x", "weight", "bias")
    given = [x.requires_grad_(x.is_floating_point() and owners[i] in call.form.gradients) for i, x in enumerate(given)]
    torch.library.opcheck(call.operator, tuple(given))


def test_compiled_whole() -> None:
    call = call_of(LOSS, 12, 257, torch.float64, "blocks")
    x, weight, ids = operands(LOSS, 9, 12, 257, torch.float64)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        partition, pick = call(x, weight, ids)
        return (partition - pick).mean() + 1e-3 * (partition**2).mean()

    given = [x.requires_grad_(), weight.requires_grad_()]
    want = torch.autograd.grad(loss(*given), given)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*given), given)
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "gradient", 1e-12)


def test_exported_with_any_number_of_rows() -> None:
    call = call_of(LOSS, 12, 257, torch.float64, "blocks")
    given = operands(LOSS, 9, 12, 257, torch.float64)

    class Module(torch.nn.Module):
        def forward(self, x, weight, ids):
            return call(x, weight, ids)

    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Module(), tuple(given), dynamic_shapes=({0: rows}, None, {0: rows}))
    more = [torch.cat([given[0]] * 3), given[1], torch.cat([given[2]] * 3)]
    for one, two in zip(results(exported.module()(*more)), results(call(*more)), strict=True):
        assert_equal(one, two, "result", 1e-12)


def test_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    form = BLOCK_FORMS["all with it"]
    call = call_of(form, 12, 257, torch.float64, "blocks")
    given = operands(form, 150, 12, 257, torch.float64)
    want = both(call, given)
    monkeypatch.setattr("weft.codegen.gpu.logits.INTERPRETED", False)
    got = both(call, given)
    for name, one in (want[0] | want[1]).items():
        assert_equal((got[0] | got[1])[name], one, name, 1e-12)


# -- specs -------------------------------------------------------------------------------------------------------------

SPEC = """
size dim = 5
size vocab = 257
axis seq

model m(x: real[seq, dim], i: id[seq] in vocab, j: id[seq] in vocab):
    z = linear(x, dim -> vocab{bias})
    return {result}
"""
ENTROPY = "logsumexp(z, over=vocab) - sum(softmax(z, over=vocab) * z, over=vocab)"
CROSS = "logsumexp(z, over=vocab) - pick(z, i, over=vocab)"
STREAMED = {
    "cross entropy and z-loss": (f"precise({CROSS} + 0.001 * logsumexp(z, over=vocab)^2)", ("partition", "pick_0")),
    "not precise": (CROSS, ("partition", "pick_0")),
    "two targets": (f"{CROSS} - 0.5 * pick(z, j, over=vocab)", ("partition", "pick_0", "pick_1")),
    "entropy": (f"precise({ENTROPY})", ("partition", "mean")),
    "margin": ("max(z, over=vocab) - pick(z, i, over=vocab)", ("top", "ties", "pick_0")),
    "all": (
        f"({ENTROPY}) * ({CROSS}) + max(z, over=vocab) + 0.1 * where(argmax(z, over=vocab) == i, 1.0, 0.0)",
        ("partition", "mean", "top", "ties", "place", "pick_0"),
    ),
}
CHANGED = {
    "soft cap": "20.0 * tanh(z / 20.0)",
    "scale": "0.25 * z",
    "read twice": "z * sigmoid(z) - 0.5",
    "square and more": "maximum(z^2, 0.1) + softplus(z)",
}
KEPT = {
    "before and after a cap": f"logsumexp(2 * tanh(z / 2), over=vocab) + {CROSS}",
    "a formula of each row": "logsumexp(z * real(i), over=vocab)",
    "another reader": f"sum(tanh(z), over=vocab) + {CROSS}",
    "the softmax itself": "max(softmax(z, over=vocab), over=vocab) + logsumexp(z, over=vocab)",
    "weights of something else": "logsumexp(z, over=vocab) + sum(softmax(z, over=vocab) * z^2, over=vocab)",
    "an entry alone": "pick(z, i, over=vocab)",
}


def graph_of(result: str, bias: bool, dtype: torch.dtype) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    text = SPEC.format(result=result, bias=", bias=true" if bias else "")
    program = check(Source("head.weft", text), op_samples.OPS).value().models["m"]
    lengths = {"seq": (0, 7, 1, 12)}
    graph = op_samples.module(program, dtype)
    return graph, op_samples.arguments(graph, op_samples.inputs(program, lengths, dtype), lengths)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("result", "names"), STREAMED.values(), ids=STREAMED.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_formula_without_stored_logits(result: str, names: tuple[str, ...], bias: bool, dtype: torch.dtype) -> None:
    graph, arguments = graph_of(result, bias, dtype)
    made = optimise(graph, GPU_PASSES)
    (op,) = [node.target for node in made.graph.nodes if isinstance(node.target, LogitsOp)]
    assert op.form.results == names
    assert not any(node.target is torch.nn.functional.linear for node in made.graph.nodes)
    exact, wide = graph_of(result, bias, torch.float64)
    assert all(torch.equal(one.to(two.dtype), two) for one, two in zip(wide, arguments, strict=True))
    want, want_gradients = gradients(exact, wide)
    unattached, _ = gradients(made, arguments)
    attach_kernels(made)
    got, got_gradients = gradients(made, arguments)
    limit = 1e-9 if dtype == torch.float64 else 2e-5
    assert got[0].dtype == unattached[0].dtype == gradients(graph, arguments)[0][0].dtype
    assert_equal(unattached[0], want[0], "meaning", limit)
    assert_equal(got[0], want[0], "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", limit)


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_formula_before_the_reductions(change: str, dtype: torch.dtype) -> None:
    """Applied in the kernels, with its derivative, and nothing of it is stored."""
    result = f"precise({CROSS} + 0.001 * logsumexp(z, over=vocab)^2)".replace("z,", f"{change},")
    graph, arguments = graph_of(result, True, dtype)
    made = optimise(graph, GPU_PASSES)
    (op,) = [node.target for node in made.graph.nodes if isinstance(node.target, LogitsOp)]
    assert op.form.results == ("partition", "pick_0")
    assert op.form.change is not None
    wide = [node for node in made.graph.nodes if node.op == "call_function" and node.target is not op]
    known = facts(made)
    assert not any(257 in known[node].dims for node in wide if node in known)
    exact, wide_arguments = graph_of(result, True, torch.float64)
    want, want_gradients = gradients(exact, wide_arguments)
    unattached, unattached_gradients = gradients(made, arguments)
    attach_kernels(made)
    got, got_gradients = gradients(made, arguments)
    limit = 1e-9 if dtype == torch.float64 else 2e-5
    assert_equal(unattached[0], want[0], "meaning", limit)
    assert_equal(got[0], want[0], "result", limit)
    for name in want_gradients:
        assert_equal(unattached_gradients[name], want_gradients[name], f"meaning's gradient of {name}", limit)
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", limit)


@pytest.mark.parametrize("result", KEPT.values(), ids=KEPT.keys())
def test_logits_with_other_readers_stay(result: str) -> None:
    graph, _ = graph_of(result, False, torch.float32)
    made = optimise(graph, (*BASIC_PASSES, Pass("streamed-logits", stream_logits_on_gpu, "")))
    assert not any(isinstance(node.target, LogitsOp) for node in made.graph.nodes)
    assert [node.target for node in made.graph.nodes] == [
        node.target for node in optimise(graph, BASIC_PASSES).graph.nodes
    ]


def test_what_is_not_trained_has_no_gradient() -> None:
    graph, _ = graph_of(CROSS, True, torch.float32)
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    made = optimise(graph, GPU_PASSES)
    (op,) = [node.target for node in made.graph.nodes if isinstance(node.target, LogitsOp)]
    assert op.form.gradients == ("x",)


# -- absent devices ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])  # two of four, for time
def test_no_spills_at_real_size(target: str) -> None:
    """OLMo 2 7B's loss in both ways, in bfloat16, and with a soft cap."""
    ops = [
        LogitsOp(f"{name}{way}", form, 4096, 100352, torch.bfloat16, in_tiles=way == "tiles")
        for name, form in (("", LOSS), ("capped_", FORMS["a soft cap"]))
        for way in ("blocks", "tiles")
    ]
    texts = [text for op in ops for text in kernel_texts(op, target, render).values()]
    roles = {
        "blocks": ("statistics", "merge", "slopes"),
        "tiles": ("statistics", "merge", "x_gradient", "weight_gradient"),
    }
    assert [text.name for text in texts] == [
        f"{name}{way}_{role}" for name in ("", "capped_") for way, all_ in roles.items() for role in all_
    ]
    for made in compile_ahead(texts, [target]):
        assert problems(made) == [], made.kernel


def test_planned_work() -> None:
    """Each block is read once and its gradient written once; tiles read x and the weight only."""
    rows, width, vocabulary = 32768, 4096, 100352
    op = LogitsOp("head", LOSS, width, vocabulary, torch.bfloat16)
    work = logits_work(op, rows)
    assert work.keys() == op.kernels.launched.keys()
    least = {"statistics": 4 * rows * vocabulary, "slopes": 6 * rows * vocabulary}
    for name, entries in least.items():
        one, launches = work[name]
        assert launches == len(list(blocks(rows, vocabulary, width)))
        assert entries <= launches * one.bytes < 1.01 * entries
        assert one.matmul == 0
    tiled = logits_work(replace(op, in_tiles=True), rows)
    assert tiled.keys() == {"statistics", "merge", "x_gradient", "weight_gradient"}
    product = 2 * rows * width * vocabulary
    assert [tiled[name][0].matmul for name in ("statistics", "x_gradient", "weight_gradient")] == [
        product, 2 * product, 2 * product,
    ]  # fmt: skip
    assert tiled["statistics"][0].bytes < 1.01 * 2 * (rows + vocabulary) * width


ENTROPY_BESIDE_ITS_INPUT = """
size dim = 1
axis seq

model m(x: real[seq, dim]) -> real[seq, dim]:
    return x - entropy(linear(x, dim -> dim), over=dim)
"""


def test_what_gives_statistics_is_not_taken_for_the_logits() -> None:
    """Several results with the level and the sizes of what is computed with them: each is read by its number."""
    program = check(Source("m.weft", ENTROPY_BESIDE_ITS_INPUT), op_samples.OPS).value().models["m"]
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    made = optimise(graph, GPU_PASSES)
    (call,) = [node for node in made.graph.nodes if isinstance(node.target, LogitsOp)]
    assert len(call.users) == 2
    assert call not in facts(made)
    attach_kernels(made)
    assert_equal(made(*arguments)[0], graph(*arguments)[0], "result", 1e-9)
