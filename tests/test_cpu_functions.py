"""CPU building blocks against plain float64 formulas, values and every gradient."""

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests import small_models
from weft.codegen.cpu.attention import decode_attention, left_pad_mask, packed_attention, plan_documents
from weft.codegen.cpu.fixed_norm import FixedNorm
from weft.codegen.cpu.head import linear_cross_entropy
from weft.codegen.cpu.joined import joined_linear
from weft.codegen.cpu.linear import linear
from weft.codegen.cpu.packed_linear import PackedLinear, strips_of
from weft.codegen.cpu.rowwise import add_rms_norm, gated_unit, rms_norm, rope, rope_pairs, rope_tables
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES

# Allowed error relative to the largest entry of the wanted tensor.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def seed_and_one_thread():
    """One thread: on a busy machine a thread that waits for another costs more than these small tensors."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(function, formula, inputs, dtype):
    """function on inputs in dtype against formula on the same numbers in float64: the result and all gradients."""
    ours = [x.to(dtype).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in ours]
    got, want = function(*ours), formula(*wide)
    got, want = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (got, want))
    upstream = [torch.randn(w.shape, dtype=torch.float64).to(g.dtype) for g, w in zip(got, want, strict=True)]
    grads = torch.autograd.grad(got, ours, upstream)
    want_grads = torch.autograd.grad(want, wide, [u.double() for u in upstream])
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_close(f"result {i}", g, w, TOLERANCE[dtype])
    for i, (g, w, x) in enumerate(zip(grads, want_grads, ours, strict=True)):
        assert g.dtype == x.dtype
        assert g.shape == x.shape
        assert_close(f"gradient {i}", g, w, TOLERANCE[dtype])


# Where terms of the size of the inputs cancel (the gradient of a softmax over one entry is 0), what is left of them
# is rounding of their size.
SIZE_OF_TERMS = 0.1


def assert_close(name, got, want, tolerance):
    assert got.shape == want.shape, f"{name}: {tuple(got.shape)} is not {tuple(want.shape)}"
    if want.numel():
        size = max(want.double().abs().max().item(), SIZE_OF_TERMS)
        error = (got.double() - want.double()).abs().max().item() / size
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def rms(x, gain=None, eps=1e-6):
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if gain is None else y * gain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "gain"),
    [((7, 48), (48,)), ((1, 33), (33,)), ((5, 2, 24), (2, 24)), ((3, 4, 16), (16,)), ((0, 8), (8,)), ((6, 20), None)],
)
def test_rms_norm(shape, gain, dtype):
    x = torch.randn(shape)
    gains = [] if gain is None else [torch.randn(gain)]
    compare(lambda x, *g: rms_norm(x, *g, eps=1e-5), lambda x, *g: rms(x, *g, eps=1e-5), [x, *gains], dtype)
    if gain is None or len(gain) == 1:
        compare(
            lambda r, x, *g: add_rms_norm(r, x, *g, eps=1e-5),
            lambda r, x, *g: r + rms(x, *g, eps=1e-5),
            [torch.randn(shape), x, *gains],
            dtype,
        )


def test_rms_norm_of_tiny_rows_uses_eps():
    compare(lambda x: rms_norm(x, eps=1e-6), lambda x: rms(x, eps=1e-6), [torch.randn(4, 8) * 1e-3], torch.float64)
    assert torch.equal(rms_norm(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_rms_norm_of_axes_that_changed_places():
    """Several rows an entry of the batch, not side by side."""
    inputs = [torch.randn(5, 6, 3), torch.randn(6)]
    compare(lambda x, g: rms_norm(x.mT, g), lambda x, g: rms(x.mT, g), inputs, torch.float64)


def test_no_rows():
    """A batch may consist of empty examples."""
    x, gain = torch.zeros(0, 3, 6, requires_grad=True), torch.ones(6, requires_grad=True)
    y = rms_norm(linear(x, torch.ones(6, 6, requires_grad=True)), gain)
    y.sum().backward()
    assert y.shape == (0, 3, 6)
    assert gain.grad is not None
    assert not gain.grad.any()
    assert joined_linear(x, torch.ones(2, 6), torch.ones(1, 6)).shape == (0, 3, 3)
    assert rope_pairs(x, torch.ones(0, 1, 3, dtype=torch.complex64)).shape == (0, 3, 6)


def test_rms_norm_of_a_strided_slice():
    joined = torch.randn(6, 30)
    compare(
        lambda x, g: rms_norm(x[:, :20].view(6, 2, 10), g.view(2, 10)),
        lambda x, g: rms(x[:, :20].reshape(6, 2, 10), g.view(2, 10)),
        [joined, torch.randn(20)],
        torch.float32,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("width", [16, 8])
def test_rope_halves(rows, width, dtype):
    frequencies = 1.0 / 100.0 ** (torch.arange(0, width, 2) / width)
    positions = torch.arange(rows) * 3
    tables = [t.to(dtype) for t in rope_tables(positions, frequencies, torch.float64)]

    def formula(x):
        cos, sin = (t.double()[..., width // 2 :] for t in tables)
        a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    compare(lambda x: rope(x, *tables), formula, [torch.randn(rows, 3, 16)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_pairs(dtype):
    angles = torch.randn(5, 1, 4, dtype=torch.float64)
    turns = torch.polar(torch.ones_like(angles), angles)

    def formula(x):
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1).flatten(-2)

    used = turns if dtype == torch.float64 else turns.to(torch.complex64)
    compare(lambda x: rope_pairs(x, used), formula, [torch.randn(5, 2, 8)], dtype)


PLAIN = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize(("rows", "gate_first"), [(5, True), (1, False), (0, True)])
def test_gated_unit(activation, rows, gate_first, dtype):
    def formula(x):
        a, b = x[..., :24], x[..., 24:]
        gate, up = (a, b) if gate_first else (b, a)
        return PLAIN[activation](gate) * up

    compare(lambda x: gated_unit(x, activation, gate_first), formula, [torch.randn(rows, 48)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 12), (1, 12), (0, 12), (2, 3, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape, bias, dtype):
    inputs = [torch.randn(shape), torch.randn(20, 12)] + ([torch.randn(20)] if bias else [])
    compare(linear, lambda x, w, *b: x @ w.t() + sum(b), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 8, 65])
@pytest.mark.parametrize(("inner", "outer"), [(12, 20), (512, 520), (7, 1), (1, 577), (24, 1153), (5000, 24)])
def test_packed_linear(rows, inner, outer, dtype):
    x, w, b = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype), torch.randn(outer).to(dtype)
    want = x.double() @ w.double().t()
    assert_close("product", PackedLinear(w)(x), want, TOLERANCE[dtype])
    assert_close("with bias", PackedLinear(w, b)(x), want + b.double(), TOLERANCE[dtype])


def test_products_on_a_processor_without_wide_vectors():
    """oneDNN multiplies bfloat16 with AVX-512 alone: elsewhere such a product was an error."""
    program = """
import torch
from weft.codegen.cpu.linear import ONEDNN_TYPES, linear
from weft.codegen.cpu.packed_linear import PackedLinear
assert torch.bfloat16 not in ONEDNN_TYPES
x, w = torch.randn(8, 12).bfloat16(), torch.randn(20, 12).bfloat16().requires_grad_()
y = linear(x, w)
y.sum().backward()
want = x.double() @ w.double().t()
for found in (y, PackedLinear(w)(x)):
    assert (found.double() - want).abs().max() <= 0.02 * want.abs().max()
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_strips_cover_every_output_evenly():
    for outer in [*range(1, 1300), 2048, 16384, 32000, 50257, 128256]:
        count, columns = strips_of(outer)
        assert (count % 2, columns % 16) == (0, 0)
        assert columns <= 576
        assert count * columns >= outer
        if outer >= 1152:
            assert count * columns <= 1.07 * outer, f"{outer} columns take {count} strips of {columns}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "gains"), [((1, 24), (24,)), ((3, 24), (24,)), ((2, 4, 6), (6,)), ((2, 4, 6), (4, 6))]
)
def test_fixed_norm(shape, gains, dtype):
    x, residual, gain = (torch.randn(size).to(dtype) for size in (shape, shape, gains))
    x[0] *= 1e-3  # where eps counts
    wide = x.double()
    want = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * gain.double()
    norm = FixedNorm(gain, 1e-5)
    given = x.clone(), residual.clone()
    assert_close("norm", norm(x), want, TOLERANCE[dtype])
    assert_close("with residual", norm(x, residual), want + residual.double(), TOLERANCE[dtype])
    assert norm(x).dtype == norm(x, residual).dtype == dtype
    assert torch.equal(x, given[0]), "operands are not written to"
    assert torch.equal(residual, given[1])


def plain_attention(q, k, v, offsets, key_offsets, causal, window, scale):
    """Document by document with an explicit mask; rows outside all documents are zero."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    for a, b, c, d in zip(offsets, offsets[1:], key_offsets, key_offsets[1:], strict=False):
        distance = torch.arange(b - a)[:, None] + (d - c) - (b - a) - torch.arange(d - c)
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance >= window
        scores = torch.einsum("qhk,shk->hqs", q[a:b], k[c:d]) * (scale or 1 / math.sqrt(q.shape[-1]))
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        out[a:b] = torch.einsum("hqs,shk->qhk", weights, v[c:d])
    return out


DOCUMENTS = {
    "one": ([0, 13], None),
    "one row": ([0, 1], None),
    "unequal": ([0, 5, 5, 12, 40, 41], None),
    "equal": ([0, 9, 18, 27], None),
    "long": ([0, 200, 330], None),
    "many short": ([sum([3, 1, 2][i % 3] for i in range(n)) for n in range(40)], None),
    "cached prefix": ([0, 3, 4, 10], [0, 8, 20, 26]),
    "cached prefix, long": ([0, 100], [0, 210]),
    "rows before and after": ([2, 7, 9], None),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 4), (True, 70), (False, None)])
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (4, 2), (3, 1)])
def test_packed_attention(name, causal, window, heads, groups, dtype):
    offsets, key_offsets = DOCUMENTS[name]
    key_offsets = key_offsets or offsets
    rows, keys = offsets[-1] + (2 if "after" in name else 0), key_offsets[-1] + (2 if "after" in name else 0)
    plan = plan_documents(torch.tensor(offsets, dtype=torch.int32), key_offsets, causal, window)
    compare(
        lambda q, k, v: packed_attention(q, k, v, plan),
        lambda q, k, v: plain_attention(q, k, v, offsets, key_offsets, causal, window, None),
        [torch.randn(rows, heads, 8), torch.randn(keys, groups, 8), torch.randn(keys, groups, 8)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_attention_on_views_with_a_scale(dtype):
    """Query, key and value are slices of one projection; their gradients meet in it."""

    def ours(joined):
        q, k, v = joined.view(11, 3, 2, 8).unbind(1)
        return packed_attention(q, k, v, plan_documents([0, 4, 11]), scale=0.3)

    def formula(joined):
        q, k, v = joined.view(11, 3, 2, 8).unbind(1)
        return plain_attention(q, k, v, [0, 4, 11], [0, 4, 11], True, None, 0.3)

    compare(ours, formula, [torch.randn(11, 48)], dtype)


def test_packed_attention_of_entries_that_lie_apart():
    """Heads and entries have changed places: nothing is copied until the kernel needs it. Nor in the gradient."""

    def ours(q, k, v):
        return packed_attention(q.mT, k.mT, v.mT, plan_documents([0, 4, 11]))

    def formula(q, k, v):
        return plain_attention(q.mT, k.mT, v.mT, [0, 4, 11], [0, 4, 11], True, None, None)

    inputs = [torch.randn(11, 8, 2) for _ in range(3)]
    compare(ours, formula, inputs, torch.float64)
    compare(lambda *x: ours(*x).mean(-1), lambda *x: formula(*x).mean(-1), inputs, torch.float64)


@pytest.mark.parametrize("value_width", [4, 12])
def test_packed_attention_with_another_value_width(value_width):
    compare(
        lambda q, k, v: packed_attention(q, k, v, plan_documents([0, 4, 11])),
        lambda q, k, v: plain_attention(q, k, v, [0, 4, 11], [0, 4, 11], True, None, None),
        [torch.randn(11, 2, 8), torch.randn(11, 2, 8), torch.randn(11, 2, value_width)],
        torch.float32,
    )


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("key_offsets", [[0, 0, 3, 3], [0, 0, 0, 0]], ids=str)
def test_packed_attention_to_documents_without_keys(key_offsets, width):
    """torch's kernel would end the process; what has nothing to look at is zero."""
    keys = key_offsets[-1]

    def with_all(result, *read):
        """Has a gradient for everything, if it is zero."""
        return result + 0 * sum(x.sum() for x in read)

    offsets: Any = [0, 4, 5, 7]
    plan: Any = plan_documents(offsets, key_offsets, False)
    whole: Any = plain_attention
    compare(
        lambda *x: with_all(packed_attention(x[0], x[1], x[2], plan), *x),
        lambda *x: with_all(whole(*x, offsets, key_offsets, False, None, None), *x),
        [torch.randn(7, 2, 8), torch.randn(keys, 2, 8), torch.randn(keys, 2, width)],
        torch.float64,
    )


def test_packed_attention_without_documents():
    x = torch.randn(0, 2, 8)
    assert packed_attention(x, x, x, plan_documents([0])).shape == (0, 2, 8)
    assert packed_attention(x, x, x[..., :3], plan_documents([0])).shape == (0, 2, 3)


def test_plans_cover_equal_lengths_in_one_call_and_few_calls_for_many():
    assert len(plan_documents([0, 9, 18, 27]).pieces) == 1
    assert len(plan_documents(DOCUMENTS["many short"][0]).pieces) == 3


def test_plan_refuses_fewer_keys_than_queries():
    with pytest.raises(ValueError, match="5 queries but only 3 keys"):
        plan_documents([0, 5], [0, 3])


CACHES = [*((d, d) for d in DTYPES), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES, ids=str)
@pytest.mark.parametrize("starts", [[0], [0, 0], [3, 0, 9]])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
def test_decode_attention(starts, window, heads, groups, dtype, cache_dtype):
    b, columns, capacity, width = len(starts), 11, 16, 8
    q = torch.randn(b, heads, width).to(dtype)
    keys, values = (torch.randn(b, groups, capacity, width).to(cache_dtype) for _ in range(2))
    mask = left_pad_mask(torch.tensor(starts), capacity, cache_dtype) if any(starts) else None
    first = 0 if window is None else columns - window
    got = decode_attention(q, keys, values, columns, mask, first=first)
    assert got.dtype == dtype
    for i, start in enumerate(starts):
        k, v = (x[i, :, max(start, first) : columns].transpose(0, 1).double() for x in (keys, values))
        want = plain_attention(q[i : i + 1].double(), k, v, [0, 1], [0, len(k)], True, None, None)
        assert_close(f"sequence {i}", got[i : i + 1], want, TOLERANCE[dtype])


def plain_losses(x, w, targets, counted):
    logits = (x @ w.t())[counted]
    ce = F.cross_entropy(logits, targets[counted], reduction="sum")
    return ce, logits.logsumexp(-1).square().sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 150])
@pytest.mark.parametrize("factors", [(1.0, 0.01), (0.25, 0.0025), (1.0, 0.0), (0.5, 0.3), (0.0, 1.0)])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_linear_cross_entropy(rows, factors, ignored, dtype):
    x, w, targets = torch.randn(rows, 12), torch.randn(50, 12) * 0.3, torch.randint(50, (rows,))
    keep = torch.rand(rows) > 0.3
    if ignored == "none":
        keep[:] = True
    else:
        targets[:: 3 if ignored == "some" else 1] = -100
    counted = keep & (targets != -100)

    def total(ce, z):
        return factors[0] * ce + factors[1] * z

    def ours(x, w):
        ce, z, count = linear_cross_entropy(x, w, targets, keep, z_coefficient=0.01, chunk_rows=64)
        assert count == counted.sum()
        return total(ce, z)

    compare(ours, lambda x, w: total(*plain_losses(x, w, targets, counted)), [x, w], dtype)


def test_linear_cross_entropy_twice_through_one_graph():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    ce, z, _ = linear_cross_entropy(x, w, torch.arange(5), z_coefficient=0.1)
    first = torch.autograd.grad(ce + 0.1 * z, (x, w), retain_graph=True)
    second = torch.autograd.grad(ce + 0.1 * z, (x, w))
    for a, b in zip(first, second, strict=True):
        assert_close("gradient", b, a, 1e-6)


def test_linear_cross_entropy_with_large_logits_and_without_gradients():
    x = torch.eye(2) * 200
    with torch.no_grad():
        ce, z, _ = linear_cross_entropy(x, torch.eye(2), torch.tensor([0, 0]))
    assert ce.item() == pytest.approx(200)
    assert z.item() == pytest.approx(2 * 200**2)


BESIDE_A_TABLE = """
size vocab = 2
size dim = 3
axis seq
shared table: real[vocab, dim] = normal(0.5)

model m(x: real[seq, dim]) -> real[seq, vocab, dim]:
    return x + rms_norm(table, over=dim, eps=0.01) as norm
"""


def test_a_residual_with_more_rows_than_the_norm() -> None:
    """They meet by a broadcast, so the two are no one function (found by random specs)."""
    x, offsets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 5], dtype=torch.int32)
    found = []
    for passes in (REFERENCE_PASSES, CPU_PASSES):
        model = small_models.model(BESIDE_A_TABLE, passes=passes)
        result = model((x, offsets)).values
        result.square().sum().backward()
        found.append([result.detach(), *(weight.grad for _, weight in model.by_path())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
