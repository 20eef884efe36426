"""Tables read inside `score=` of `attend`, by ids computed from the two rows: biases by distance, by pairs of types."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, fx

from tests.diagnostics import codes
from tests.small_models import checked, model, tokens
from tests.test_decode import compare_everywhere
from tests.test_scores import RUN_ARTIFACT
from weft.codegen.artifact import compile_to
from weft.codegen.gpu import attention_form, attention_kernels
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, optimise
from weft.codegen.score.graph_keys import attention_keys, decode_keys
from weft.runtime.decoder import Decoder
from weft.runtime.verify import Part, verify
from weft.views import planned_kernels

READING = """
size dim = 8
size heads = 4
size kv_heads = 2
size buckets = 6
size vocab = 11
axis hd = 6
axis types = 3
axis others = types
axis wide = heads * hd
axis seq

block bucket(back: int) -> id in buckets:
    far = 2 + int(log(real(maximum(back, 2)) / 2) / 0.7)
    return wrap(where(back < 2, back, minimum(far, buckets - 1)), buckets)

block relative(score: real[heads]) -> real[heads]:
    param bias: real[buckets, heads] = normal(0.5)
    param pair: real[types, heads, others] = normal(0.5)
    param near: real[buckets] = normal(0.5)
    back = query(position) - key(position)
    known = pick(pair[query(kind)], key(kind), over=others)
    stepped = embed(bucket(back), buckets -> heads) as steps
    nearest = exp(0.3 * near[wrap(clamp(back, high=3) // 2, buckets)])
    return score * nearest + query(gate) * bias[bucket(back)] + known + stepped

model m(tokens: id[seq] in vocab, kind: id[seq] in types) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = linear(x, dim -> (heads, hd)) as query
    k = linear(x, dim -> (kv_heads, hd)) as keys
    gate = linear(x, dim -> heads) as gates
    y = attend(q, k, k, over=hd, along=seq, group=heads -> kv_heads, mask=causal and window(9), score=relative)
    return flatten(y, (heads, hd) -> wide) |> linear(wide -> vocab) as head

init ** = normal(0.35)

objective text(tokens: id[seq] in vocab, kind: id[seq] in types):
    loss text = cross_entropy(m(tokens, kind), next(tokens))
"""
LENGTHS = (9, 4, 1, 12)
TABLES = ("y.relative.bias", "y.relative.pair", "y.relative.near", "y.relative.steps.weight")


def _given(lengths: tuple[int, ...] = LENGTHS) -> dict[str, list[Tensor]]:
    return {"tokens": tokens(lengths, 11), "kind": tokens(lengths, 3, seed=4)}


def _by_hand(weights: dict[str, Tensor], ids: Tensor, kind: Tensor) -> Tensor:
    x = weights["embed.weight"][ids]
    q = (x @ weights["query.weight"].T).view(-1, 4, 6)
    k = (x @ weights["keys.weight"].T).view(-1, 2, 6).repeat_interleave(2, 1)
    bias, pair, near, steps = (weights[name] for name in TABLES)
    row = torch.arange(len(ids))
    back = row[:, None] - row
    far = 2 + torch.floor(torch.log(back.clamp(min=2).double() / 2) / 0.7).long().clamp(max=3)
    bucket = torch.where(back < 2, back, far).remainder(6)
    halves = torch.div(back.clamp(max=3), 2, rounding_mode="floor").remainder(6)
    scores = torch.einsum("qhd,khd->hqk", q, k) * 6**-0.5 * torch.exp(0.3 * near[halves])
    scores = scores + (x @ weights["gates.weight"].T).T[:, :, None] * bias[bucket].movedim(-1, 0)
    scores = scores + pair[kind[:, None], :, kind].movedim(-1, 0) + steps[bucket].movedim(-1, 0)
    scores = scores.masked_fill((back < 0) | (back > 8), -torch.inf)
    mixed = torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), k)
    return mixed.reshape(-1, 24) @ weights["head.weight"].T


@pytest.mark.parametrize("passes", [(), CPU_PASSES, GPU_PASSES], ids=["reference", "CPU", "kernels"])
def test_entries_are_read_by_ids_of_both_rows(passes) -> None:
    """Outputs, and the gradient of every weight: of tables per head and for all, by one id and by two."""
    small, given = model(READING, passes=passes), _given()
    weights: dict[str, Tensor] = dict(small.named_parameters())
    assert set(TABLES) <= set(weights)
    found = small(*given.values())
    wanted = [_by_hand(weights, ids, kind) for ids, kind in zip(*given.values(), strict=True)]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)
    gradients = [torch.autograd.grad(torch.cat(y).square().sum(), list(weights.values())) for y in (found, wanted)]
    for name, one, two in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}")
        assert two.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_kernels_read_them_too(dtype: torch.dtype) -> None:
    parts = [part for part in verify(checked(READING), dtype, True) if isinstance(part, Part)]
    wrong = [part for part in parts if not part.is_ok]
    assert not wrong, wrong
    assert {part.kind for part in parts} >= {"region", "region gradient", "gradient", "decode"}
    assert {part.name for part in parts if part.kind == "gradient"} >= set(TABLES)


def test_gradients_are_the_same_on_every_run() -> None:
    small = model(READING, torch.float32, passes=GPU_PASSES)
    results = []
    for _ in range(2):
        small.zero_grad()
        total, _ = small.loss(None, *_given().values())["text"]
        total.backward()
        results.append([parameter.grad for parameter in small.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_decoding_reads_them_too() -> None:
    given = _given()
    compare_everywhere(model(READING), given)
    compare_everywhere(model(READING, torch.float32, passes=CPU_PASSES), given, tolerance=1e-4)
    compare_everywhere(model(READING, passes=GPU_PASSES), given)


def test_kernels_are_known_before_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small = model(READING, torch.float32, passes=GPU_PASSES)
    monkeypatch.setattr(attention_kernels, "_kernels", {})
    total, _ = small.loss(None, *_given((5, 2)).values())["text"]
    total.backward()
    launched = {key for key, name, _ in attention_kernels._kernels if name == "attention_query_gradient"}
    assert launched == set(attention_keys(optimise(small.reference(small.objective()), GPU_PASSES)))
    decoder = Decoder(small)
    state = decoder.begin(2, 4, {})
    attention_kernels._kernels.clear()
    decoder.step(state, {"tokens": torch.tensor([1, 2]), "kind": torch.tensor([0, 2])})
    step = planned_kernels.decoding_step(small.program, torch.float32)
    assert isinstance(step, fx.GraphModule)
    assert {key for key, _, _ in attention_kernels._kernels} == set(decode_keys(step, torch.float32))


def test_an_artifact_has_its_kernels(tmp_path) -> None:
    """In a process of its own, through Triton's interpreter."""
    compile_to(checked(READING), tmp_path / "artifact", torch.float32, GPU_PASSES, target="cuda:90")
    small, given = model(READING, torch.float32), _given((5, 1))
    total, _ = small.loss(None, *given.values())["text"]
    total.backward()
    wanted = {name: parameter.grad for name, parameter in small.named_parameters()}
    ids, kind = (torch.cat(one) for one in given.values())
    torch.save((small.state_dict(), ids, kind, total.detach(), wanted), tmp_path / "all.pt")
    run = subprocess.run(
        [sys.executable, "-c", RUN_ARTIFACT], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "", "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


# -- an independent implementation ---------------------------------------------------------------------------------

T5 = """
size dim = 16
size heads = 4
size buckets = 32
axis head_dim = 8
axis seq
option furthest: real = 128.0
option is_decoder: flag = true

block bucket(distance: int) -> id in buckets:
    if is_decoder:
        count = buckets
        first = 0
        far = maximum(distance, 0)
    else:
        count = buckets / 2
        first = where(distance < 0, count, 0)
        far = abs(distance)
    exact = count / 2
    wide = exact + int(log(real(maximum(far, exact)) / exact) / log(furthest / exact) * (count - exact))
    return wrap(first + where(far < exact, far, minimum(wide, count - 1)), buckets)

block relative(score: real[heads]) -> real[heads]:
    param bias: real[buckets, heads] = normal(1)
    return score + bias[bucket(query(position) - key(position))]

mask seen = MASK

model m(x: real[seq, dim]) -> real[seq, dim]:
    q = linear(x, dim -> (heads, head_dim)) as q
    k = linear(x, dim -> (heads, head_dim)) as k
    v = linear(x, dim -> (heads, head_dim)) as v
    y = attend(q, k, v, over=head_dim, along=seq, mask=seen, score=relative, scale=1.0) as attention
    return linear(y, (heads, head_dim) -> dim) as o
"""


@pytest.mark.parametrize("passes", [(), GPU_PASSES], ids=["reference", "kernels"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["decoder", "encoder"])
def test_the_bias_of_t5(is_decoder: bool, passes) -> None:
    """Self-attention of transformers' T5, with weights of its own: outputs, and the gradient of its table."""
    pytest.importorskip("transformers")
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=16, d_kv=8, num_heads=4, dropout_rate=0.0, is_decoder=is_decoder)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    text = T5.replace("MASK", "causal" if is_decoder else "key(position) >= 0")
    ours = model(text.replace("flag = true", f"flag = {str(is_decoder).lower()}"), torch.float32, passes=passes)
    state = theirs.state_dict()
    state["attention.bias"] = state.pop("relative_attention_bias.weight")
    ours.load_state_dict(state)
    given = [torch.randn(length, 16) for length in (150, 1, 37)]
    found, wanted = torch.cat(ours(given)), torch.cat([_theirs(theirs, x, is_decoder) for x in given])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    gradient = dict(ours.named_parameters())["attention.bias"].grad
    expected = theirs.relative_attention_bias.weight.grad
    assert gradient is not None
    assert expected is not None
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected != 0).all(1).sum() > (30 if is_decoder else 28)


def _theirs(attention, x: Tensor, is_causal: bool) -> Tensor:
    rows = len(x)
    mask = torch.full((rows, rows), -torch.inf).triu(1) if is_causal else torch.zeros(rows, rows)
    return attention(x[None], mask=mask[None, None])[0][0]


# -- places ------------------------------------------------------------------------------------------------------------

WINDOWS = """
size dim = 6
size heads = 2
axis hd = dim / heads
axis spot = 6
axis offset = 15
axis window
block shifted(score: real[heads]) -> real[heads]:
    param bias: real[heads, offset] = normal(1)
    up = query(position) // 3 - key(position) // 3
    left = query(position) mod 3 - key(position) mod 3
    return score + bias[wrap((up + 1) * 5 + left + 2, offset)]
model m(x: real[window, spot, heads, hd]) -> real[window, spot, heads, hd]:
    return attend(x, x, x, over=hd, along=spot, score=shifted) as shifts
"""


@pytest.mark.parametrize("passes", [(), CPU_PASSES, GPU_PASSES], ids=["reference", "CPU", "kernels"])
def test_along_a_static_axis(passes) -> None:
    """Windows of 2 x 3 places, as Swin transformers have them."""
    small = model(WINDOWS, passes=passes)
    x = torch.randn(5, 6, 2, 3, dtype=torch.float64)
    (bias,) = small.parameters()
    spot = torch.arange(6)
    up, left = spot[:, None] // 3 - spot // 3, spot[:, None] % 3 - spot % 3
    scores = torch.einsum("wqhd,wkhd->whqk", x, x) * 3**-0.5 + bias[:, (up + 1) * 5 + left + 2]
    wanted = torch.einsum("whqk,wkhd->wqhd", torch.softmax(scores, -1), x)
    found = small([x])[0]
    torch.testing.assert_close(found, wanted)
    both = [torch.autograd.grad(y.square().sum(), bias)[0] for y in (found, wanted)]
    torch.testing.assert_close(*both)


SEGMENTS = """
size dim = 6
axis seven = 7
axis seq
axis patch cut from seq
block placed(score: real) -> real:
    param own: real[seven] = normal(1)
    return score * own[wrap(key(position), seven)] + own[wrap(query(position) // 2, seven)] * score
model m(x: real[seq, dim]) -> real[seq, dim]:
    segment seq into patch ends where position(seq) mod 3 == 1
    return attend(x, x, x, over=dim, along=seq, mask=causal and same(patch), score=placed) as places
"""


@pytest.mark.parametrize("passes", [(), CPU_PASSES, GPU_PASSES], ids=["reference", "CPU", "kernels"])
def test_positions_are_those_of_the_example(passes) -> None:
    """Also where a mask makes segments the examples of the kernels; decoding counts on."""
    small, x = model(SEGMENTS, passes=passes), [torch.randn(n, 6, dtype=torch.float64) for n in (11, 1, 8)]
    (own,) = small.parameters()
    for one, found in zip(x, small(x), strict=True):
        row = torch.arange(len(one))
        factor = own[row.remainder(7)] + own[torch.div(row, 2, rounding_mode="floor").remainder(7)][:, None]
        seen = torch.div(row + 1, 3, rounding_mode="floor")[:, None] == torch.div(row + 1, 3, rounding_mode="floor")
        scores = (one @ one.T * 6**-0.5 * factor).masked_fill(~(seen & (row <= row[:, None])), -torch.inf)
        torch.testing.assert_close(found, torch.softmax(scores, -1) @ one)
    compare_everywhere(small, {"x": x})


LONG = """
size dim = 8
axis distance = DISTANCE
axis seq
block clipped(score: real) -> real:
    param bias: real[distance] = normal(1)
    return score + bias[wrap(clamp(query(position) - key(position), low=-9, high=9) + 9, distance)]
model m(x: real[seq, dim]) -> real[seq, dim]:
    return attend(x, x, x, over=dim, along=seq, score=clipped)
"""


@pytest.mark.parametrize("most", [19, 18])
def test_gradients_of_long_tables_are_torchs(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is longer than kernels take has its gradient all the same, and the planned kernels say whose."""
    monkeypatch.setattr(attention_form, "MOST_ENTRIES", most)
    monkeypatch.setattr(attention_kernels, "_kernels", {})
    text = LONG.replace("DISTANCE", "19")
    x = [torch.randn(n, 8, dtype=torch.float64) for n in (15, 1, 6)]
    grads = []
    for passes in ((), GPU_PASSES):
        small = model(text, passes=passes)
        torch.cat(small(x)).square().sum().backward()
        grads.append([parameter.grad for parameter in small.parameters()])
    torch.testing.assert_close(*grads)
    ours = ["attention_delta", "attention_forward", "attention_key_gradient", "attention_query_gradient"]
    assert sorted({name for _, name, _ in attention_kernels._kernels}) == (ours if most == 19 else ours[1:2])


def test_what_is_left_to_torch_is_said() -> None:
    for length, is_long in ((1024, False), (1025, True)):
        planned = planned_kernels.of_spec(checked(LONG.replace("DISTANCE", str(length))), ["cuda:90"], 64)
        names = [one.kernel.name for one in planned if one.direction != "decode"]
        assert len(names) == (1 if is_long else 4)
        assert "attention_forward" in names
        assert [one.note is not None for one in planned] == [is_long] * len(planned)
    assert "a table of 1,025 entries" in str(planned[0].note)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = """
size dim = 8
size heads = 2
size buckets = 4
axis hd = dim / heads
axis types = 3
axis seq
block made(s: real[heads]) -> real[heads]:
    param bias: real[buckets, heads]
    param other: real[buckets, hd]
    param two: real[types, buckets]
    back = query(position) - key(position)
    return s + READ
model m(x: real[seq, heads, hd], kind: id[seq] in types, r: real[seq, buckets],
        each: real[buckets]) -> real[seq, heads, hd]:
    return attend(x, x, x, over=hd, along=seq, mask=causal, score=made)
"""


@pytest.mark.parametrize(
    ("read", "code"),
    [
        ("bias[wrap(back, buckets)]", None),
        ("bias[back]", "E201"),
        ("bias[query(kind)]", "E204"),
        ("other[wrap(back, buckets)]", "E202"),
        ("sum(other[wrap(back, buckets)], over=hd)", "E901"),
        ("two[query(kind)]", "E202"),
        ("two[query(kind)][wrap(back, buckets)]", None),
        ("query(r)[wrap(back, buckets)]", "E901"),
        ("bias[argmax(query(r), over=buckets)]", "E901"),
        ("r[wrap(back, buckets)]", "E255"),
        ("two[kind][wrap(back, buckets)]", "E255"),
        ("each[wrap(back, buckets)]", "E901"),
    ],
)
def test_what_is_no_entry_of_a_table_is_refused(read: str, code: str | None) -> None:
    assert codes(REFUSED.replace("READ", read)) == ([] if code is None else [code])


LEAK = """
size dim = 8
size vocab = 11
axis seq
block made(score: real) -> real:
    param bias: real[vocab]
    return score + bias[SIDE(word)]
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    word = ID
    y = attend(x, x, x, over=dim, along=seq, mask=causal, score=made)
    return linear(y, dim -> vocab) as head
objective text(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), next(tokens))
"""


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize(("word", "leaks"), [("tokens", False), ("or(next(tokens), 0)", True)])
def test_an_id_that_looks_ahead_is_an_error(side: str, word: str, leaks: bool) -> None:
    assert codes(LEAK.replace("SIDE", side).replace("ID", word)) == (["E401"] if leaks else [])
