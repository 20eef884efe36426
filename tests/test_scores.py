"""`score=` of `attend`: a formula of each score, between the product of query and key and the softmax."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import fx

from tests.diagnostics import codes, mistakes
from tests.small_models import checked, model, tokens
from tests.test_decode import compare_everywhere
from weft.codegen.artifact import compile_to
from weft.codegen.gpu import attention_kernels
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, optimise
from weft.codegen.score.graph_keys import attention_keys, decode_keys
from weft.runtime.decoder import Decoder
from weft.runtime.verify import Part, verify
from weft.views.planned_kernels import decoding_step

HEAD = "size dim = 8\nsize heads = 2\nsize vocab = 11\naxis hd = dim / heads\naxis seq\n"
CAPPED = (
    HEAD
    + """
option cap: real = 5.0

block capped(score: real) -> real:
    return cap * tanh(score / cap)

block bent(score: real) -> real:
    return where(score > 0, maximum(score, 0.3), score^2)

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = unflatten(linear(x, dim -> dim) as query, dim -> (heads, hd))
    y = attend(q, q, q, over=hd, along=seq, mask=causal and window(3), score=capped, bias=sum(x, over=dim))
    z = attend(q, q, q, over=hd, along=seq, mask=causal, score=bent)
    return flatten(y + z, (heads, hd) -> dim) |> linear(dim -> vocab) as head

init ** = normal(1.0)
"""
)
LENGTHS = (9, 4, 1, 12)


def test_scores_are_what_the_block_makes_of_them() -> None:
    small = model(CAPPED)
    weights = dict(small.named_parameters())
    given = tokens(LENGTHS, 11)
    for ids, found in zip(given, small(given), strict=True):
        x = weights["embed.weight"][ids]
        q = (x @ weights["query.weight"].T).view(-1, 2, 4)
        row = torch.arange(len(ids))
        causal = row <= row[:, None]
        near = causal & ((row - row[:, None]).abs() < 3)
        scores = torch.einsum("qhd,khd->hqk", q, q) / 2
        capped = 5 * torch.tanh(scores / 5) + x.sum(-1)
        bent = torch.where(scores > 0, scores.clamp(min=0.3), scores**2)
        parts = [
            torch.einsum("hqk,khd->qhd", torch.softmax(s.masked_fill(~mask, -torch.inf), -1), q)
            for s, mask in ((capped, near), (bent, causal))
        ]
        torch.testing.assert_close(found, torch.stack(parts).sum(0).reshape(-1, 8) @ weights["head.weight"].T)


def test_decoding_applies_them_too() -> None:
    compare_everywhere(model(CAPPED), {"tokens": tokens(LENGTHS, 11)})
    compare_everywhere(model(CAPPED, torch.float32, passes=CPU_PASSES), {"tokens": tokens(LENGTHS, 11)}, tolerance=1e-4)


READING = """
size dim = 8
size heads = 4
size kv_heads = 2
size vocab = 11
axis hd = 6
axis wide = heads * hd
axis seq

block nearer(score: real[heads]) -> real[heads]:
    param slope: real[heads] = normal(0.5)
    distance = real(query(position) - key(position))
    return where(query(flag), score, 2 * tanh(score)) - softplus(slope) * distance + query(gate) * key(tilt)

model m(tokens: id[seq] in vocab, class: real) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = linear(x, dim -> (heads, hd)) as query
    k = linear(x, dim -> (kv_heads, hd)) as keys
    gate = linear(x, dim -> heads) as gates
    tilt = class * sum(x, over=dim)
    flag = tokens == 3
    y = attend(q, k, k, over=hd, along=seq, group=heads -> kv_heads, mask=causal and window(6), score=nearer)
    return flatten(y, (heads, hd) -> wide) |> linear(wide -> vocab) as head

init ** = normal(0.35)

objective text(tokens: id[seq] in vocab, class: real):
    loss text = cross_entropy(m(tokens, class), next(tokens))
"""


def _by_hand(weights: dict[str, torch.Tensor], ids: torch.Tensor, scale: float) -> torch.Tensor:
    x = weights["embed.weight"][ids]
    q = (x @ weights["query.weight"].T).view(-1, 4, 6)
    k = (x @ weights["keys.weight"].T).view(-1, 2, 6).repeat_interleave(2, 1)
    row = torch.arange(len(ids))
    distance = (row[:, None] - row).double()
    scores = torch.einsum("qhd,khd->hqk", q, k) * 6**-0.5
    scores = torch.where((ids == 3)[:, None], scores, 2 * torch.tanh(scores))
    scores = scores - torch.nn.functional.softplus(weights["y.nearer.slope"])[:, None, None] * distance
    scores = scores + (x @ weights["gates.weight"].T).T[:, :, None] * (scale * x.sum(-1))
    scores = scores.masked_fill((distance < 0) | (distance > 5), -torch.inf)
    mixed = torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), k)
    return mixed.reshape(-1, 24) @ weights["head.weight"].T


def test_a_score_reads_weights_and_values_of_both_rows() -> None:
    """Outputs and the gradient of every weight: per head, per query row, per key row, and of the class."""
    small, given, scales = model(READING), tokens(LENGTHS, 11), [0.5, -1.0, 2.0, 1.5]
    weights: dict[str, torch.Tensor] = dict(small.named_parameters())
    found = small(given, scales)
    wanted = [_by_hand(weights, ids, scale) for ids, scale in zip(given, scales, strict=True)]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)
    gradients = [
        torch.autograd.grad(torch.cat(results).square().sum(), list(weights.values())) for results in (found, wanted)
    ]
    for name, one, two in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}")
    assert gradients[0][list(weights).index("y.nearer.slope")].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_kernels_read_them_too(dtype: torch.dtype) -> None:
    """Forward, every gradient and decoding through the kernels, against float64."""
    parts = [part for part in verify(checked(READING), dtype, True) if isinstance(part, Part)]
    wrong = [part for part in parts if not part.is_ok]
    assert not wrong, wrong
    of_model = [part.name for part in parts if part.kind == "region gradient" and part.program == "m"]
    assert len([name for name in of_model if name.startswith("y,")]) == 2 + 3  # q; k, which v is; slope, gate, tilt
    assert {part.kind for part in parts} >= {"region", "gradient", "decode"}
    assert "y.nearer.slope" in {part.name for part in parts if part.kind == "gradient"}


def test_gradients_of_what_is_read_are_the_same_on_every_run() -> None:
    small = model(READING, torch.float32, passes=GPU_PASSES)
    results = []
    for _ in range(2):
        small.zero_grad()
        total, _ = small.loss(None, tokens(LENGTHS, 11), [0.5, -1.0, 2.0, 1.5])["text"]
        total.backward()
        results.append([parameter.grad for parameter in small.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_decoding_reads_them_too() -> None:
    given, inputs = {"tokens": tokens(LENGTHS, 11)}, {"class": [0.5, -1.0, 2.0, 1.5]}
    compare_everywhere(model(READING), given, inputs=inputs)
    compare_everywhere(model(READING, torch.float32, passes=CPU_PASSES), given, inputs=inputs, tolerance=1e-4)
    compare_everywhere(model(READING, passes=GPU_PASSES), given, inputs=inputs)


ENCODED = """
size dim = 6
size vocab = 11
axis seq
axis word
block weighed(score: real) -> real:
    return score * query(trust) + key(weight) - 0.1 * real(key(position))
model m(words: id[word] in vocab, weight: real[word], tokens: id[seq] in vocab) -> real[seq, vocab]:
    e = embed(words, vocab -> dim) as words
    x = embed(tokens, vocab -> dim) as tokens
    trust = mean(x, over=dim)
    y = attend(x, e, e, over=dim, along=word, score=weighed)
    return linear(y + x, dim -> vocab) as head
init ** = normal(0.5)
"""


def test_keys_of_another_axis() -> None:
    words = tokens((3, 0, 6, 1), 11, seed=2)
    inputs = {"words": words, "weight": [torch.arange(len(x)) / 4 for x in words]}
    for passes in ((), GPU_PASSES):
        compare_everywhere(model(ENCODED, passes=passes), {"tokens": tokens(LENGTHS, 11)}, inputs=inputs)


def test_positions_along_a_static_axis() -> None:
    text = """
size dim = 6
axis slot = 5
axis seq
option slope: real = 0.25
block far(score: real) -> real:
    return score + slope * abs(real(query(position) - key(position)))
model m(x: real[seq, slot, dim]) -> real[seq, slot, dim]:
    return attend(x, x, x, over=dim, along=slot, mask=causal, score=far)
"""
    x = torch.randn(7, 5, 6, dtype=torch.float64)
    row = torch.arange(5)
    scores = torch.einsum("sqd,skd->sqk", x, x) * 6**-0.5 + 0.25 * (row[:, None] - row).abs()
    scores = scores.masked_fill(row > row[:, None], -torch.inf)
    for passes in ((), GPU_PASSES):
        torch.testing.assert_close(model(text, passes=passes)([x])[0], torch.softmax(scores, -1) @ x)


ROUNDED = READING.replace("2 * tanh(score)", "round(score) + abs(query(tilt)) ^ 1.5")


def test_what_kernels_lack_the_reference_computes() -> None:
    parts = [part for part in verify(checked(ROUNDED), torch.float64, True) if isinstance(part, Part)]
    assert all(part.is_ok for part in parts)
    given, inputs = {"tokens": tokens(LENGTHS, 11)}, {"class": [0.5, -1.0, 2.0, 1.5]}
    compare_everywhere(model(ROUNDED, passes=GPU_PASSES), given, inputs=inputs)


STEPS = """
size dim = 6
size heads = 2
size buckets = 4
axis hd = dim / heads
axis seq
block stepped(score: real[heads]) -> real[heads]:
    distance = query(position) - key(position)
    for bucket in 0 .. buckets:
        param step: real[heads] = normal(1)
        score = score + where(distance >= 2 ^ bucket, step, 0.0)
    return score
model m(x: real[seq, heads, hd]) -> real[seq, heads, hd]:
    return attend(x, x, x, over=hd, along=seq, mask=causal, score=stepped) as far
"""


@pytest.mark.parametrize("passes", [(), GPU_PASSES], ids=["reference", "kernels"])
def test_a_bias_by_distance_in_growing_steps(passes) -> None:
    small = model(STEPS, passes=passes)
    x = torch.randn(12, 2, 3, dtype=torch.float64)
    found = small([x])[0]
    weights = dict(small.named_parameters())
    row = torch.arange(12)
    distance = row[:, None] - row
    scores = torch.einsum("qhd,khd->hqk", x, x) * 3**-0.5
    for bucket in range(4):
        step = weights[f"far.bucket.{bucket}.step"]
        scores = scores + torch.where(distance >= 2**bucket, step[:, None, None], 0)
    mixed = torch.softmax(scores.masked_fill(distance < 0, -torch.inf), -1)
    wanted = torch.einsum("hqk,khd->qhd", mixed, x)
    torch.testing.assert_close(found, wanted)
    both = [torch.autograd.grad((y**2).sum(), list(weights.values())) for y in (found, wanted)]
    for name, one, two in zip(weights, *both, strict=True):
        torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("text", [READING, CAPPED], ids=["reading", "capped"])
def test_kernels_are_known_before_they_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph says it will launch, and what is launched: training, and a step of the decoder."""
    small = model(text, torch.float32, passes=GPU_PASSES)
    program = small.objective() if text is READING else small.program
    inputs = {"class": [0.5, -1.0]} if text is READING else {}
    monkeypatch.setattr(attention_kernels, "_kernels", {})
    if text is READING:
        total, _ = small.loss(None, tokens((5, 2), 11), [0.5, -1.0])["text"]
    else:
        total = torch.cat(small(tokens((5, 2), 11))).sum()
    total.backward()
    launched = {key for key, name, _ in attention_kernels._kernels if name == "attention_key_gradient"}
    assert launched == set(attention_keys(optimise(small.reference(program), GPU_PASSES)))
    decoder = Decoder(small)
    state = decoder.begin(2, 4, inputs)
    attention_kernels._kernels.clear()
    decoder.step(state, torch.tensor([1, 2]))
    step = decoding_step(small.program, torch.float32)
    assert isinstance(step, fx.GraphModule)
    assert {key for key, _, _ in attention_kernels._kernels} == set(decode_keys(step, torch.float32))


def test_an_artifact_has_its_kernels(tmp_path) -> None:
    """In a process of its own, through Triton's interpreter."""
    folder = compile_to(checked(READING), tmp_path / "artifact", torch.float32, GPU_PASSES, target="cuda:90")
    small = model(READING, torch.float32)
    given, scales = tokens((5, 1), 11), [0.5, -1.0]
    total, _ = small.loss(None, given, scales)["text"]
    total.backward()
    wanted = {name: parameter.grad for name, parameter in small.named_parameters()}
    torch.save(
        (small.state_dict(), torch.cat(given), torch.tensor(scales), total.detach(), wanted), tmp_path / "all.pt"
    )
    run = subprocess.run(
        [sys.executable, "-c", RUN_ARTIFACT], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "", "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert folder.name == "artifact"


RUN_ARTIFACT = """
import torch
import artifact
state, ids, scales, total, wanted = torch.load("all.pt")
model = artifact.load()
model.load_state_dict(state)
found, _ = model.loss_text(ids, scales, torch.tensor([0, 5, 6], dtype=torch.int32))
found.backward()
torch.testing.assert_close(found, total)
for name, parameter in model.named_parameters():
    torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)
"""


LEAK = """
size dim = 8
size vocab = 11
axis seq
block weighed(score: real) -> real:
    return score * SIDE
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    ahead = shift(sum(x, over=dim), -1) |> or(0)
    y = attend(x, x, x, over=dim, along=seq, mask=MASK, score=weighed)
    return linear(y, dim -> vocab) as head
objective text(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), next(tokens))
"""


@pytest.mark.parametrize(
    ("side", "mask", "leaks"),
    [
        ("query(sum(x, over=dim))", "causal", False),
        ("query(ahead)", "causal", True),
        ("key(ahead)", "causal", True),
        ("key(ahead)", "key(position) < query(position)", False),
        ("key(sum(x, over=dim))", "causal", False),
        ("real(key(position))", "causal", False),
    ],
)
def test_what_a_score_reads_counts_as_an_operand(side: str, mask: str, leaks: bool) -> None:
    """A key's value is seen as its key is, a query's at its own row."""
    text = LEAK.replace("SIDE", side).replace("MASK", mask)
    assert codes(text) == (["E401"] if leaks else [])


CALL = """
model m(x: real[seq, dim], n: int) -> real[seq, dim]:
    return attend(x, x, x, over=dim, along=seq, mask=causal, score=made)
"""


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("block made(s: real) -> real:\n    return s * real(index(seq))\n", "E218"),
        ("block made(s: real) -> real:\n    return s * query(index(seq))\n", "E901"),
        ("block made(s: real) -> real:\n    return s + query(s)\n", "E261"),
        ("block made(s: real) -> real:\n    return s + query(key(mean(x, over=dim)))\n", "E261"),
        ("block made(s: real) -> real:\n    return s + query(4)\n", "E261"),
        ("block made(s: real) -> real:\n    return s + query()\n", "E311"),
        ("block made(s: real) -> real:\n    return s + query(y)\n", "E301"),
        ("block made(s: real) -> real:\n    return s + query(next(mean(x, over=dim)))\n", "E207"),
        ("block made(s: real) -> real:\n    return s + mean(query(x), over=dim)\n", "E901"),
        ("block made(s: real) -> real:\n    return s * query(position)\n", "E201"),
        ("block made(s: real) -> real:\n    param slope: real[heads]\n    return s * slope\n", "E255"),
        ("block made(s: real) -> real:\n    return s * mean(x, over=dim)\n", "E255"),
        ("block made(s: real) -> real:\n    return s * logsumexp(query(x), over=dim)\n", "E901"),
        ("block made(s: real) -> flag:\n    return s > 0\n", "E201"),
        ("block made(s: real) -> real:\n    return s + t\n", "E301"),
        ("block made(s: real, t: real) -> real:\n    return s + t\n", "E311"),
        ("block made(s: real[hd]) -> real:\n    return sum(s, over=hd)\n", "E254"),
        ("size made = 4\n", "E312"),
    ],
)  # fmt: skip
def test_what_is_no_formula_of_a_score_is_refused(block: str, code: str) -> None:
    assert codes(HEAD + block + CALL) == [code]


def test_the_checker_alone_makes_no_nodes_of_it() -> None:
    """The block's operators are in the formula, not in the program."""
    assert mistakes(CAPPED.lstrip()) == ()
    assert "tanh" not in [node.op.name for node in model(CAPPED).program.nodes]
