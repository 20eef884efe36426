"""Derived decoding with generated kernels: which calls a step makes, and that it equals the full forward."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.small_models import DECODER, checked, model, tokens
from tests.test_decode import BIASED, ENCODER, LENGTHS, SAME_DOCUMENT, STRICTLY_BEFORE, compare_everywhere
from tests.test_verify import ONE_LAYER
from weft.codegen.decode_stages import modules
from weft.codegen.functions import caches
from weft.codegen.gpu import attention_caches, attention_decode
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.runtime.decoder import Decoder
from weft.runtime.model import Model, load
from weft.runtime.verify import Part, verify

# Groups that share a key head, a window that a cache is written around, and heads that are two operands of a product.
WINDOWS = """
size vocab = 11
size dim = 12
size heads = 6
size kv_heads = 2
size head_dim = 20
axis seq

block attention(x: real[seq, dim], mask: mask) -> real[seq, dim]:
    q = linear(x, dim -> (heads, head_dim))
    k = linear(x, dim -> (kv_heads, head_dim))
    v = linear(x, dim -> (kv_heads, head_dim))
    mixed = attend(q, k, v, over=head_dim, along=seq, group=heads -> kv_heads, mask=mask)
    return linear(mixed, (heads, head_dim) -> dim) as out

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    x = x + attention(x, causal and window(1)) as own
    x = x + attention(x, causal and window(3)) as near
    x = x + attention(x, key(position) < query(position) and window(5)) as before
    x = x + attention(x, causal) as far
    return linear(x, dim -> vocab) as head

init ** = normal(0.4)
"""


@pytest.mark.parametrize(
    ("text", "limit"),
    [(DECODER, 19), (WINDOWS, 11), (STRICTLY_BEFORE, 11), (BIASED, 11)],
    ids=["decoder", "windows", "strictly-before", "biased"],
)
def test_rows_and_pieces_equal_the_forward(text: str, limit: int) -> None:
    """Prompts, single rows of sequences that end at different times, and uneven pieces; against the fused forward."""
    compare_everywhere(model(text, torch.float64, passes=GPU_PASSES), {"tokens": tokens(LENGTHS, limit)})


def test_other_inputs() -> None:
    documents = [torch.sort(x).values for x in tokens(LENGTHS, 5, seed=7)]
    given = {"tokens": tokens(LENGTHS, 11), "doc": documents}
    compare_everywhere(model(SAME_DOCUMENT, passes=GPU_PASSES), given)
    inputs = {"words": tokens((3, 0, 6, 1), 11, seed=2), "class": [0, 2, 1, 1]}
    compare_everywhere(model(ENCODER, passes=GPU_PASSES), {"tokens": tokens(LENGTHS, 11)}, inputs=inputs)


def test_sequences_of_one_length() -> None:
    compare_everywhere(model(WINDOWS, passes=GPU_PASSES), {"tokens": tokens((7, 7), 11)}, capacity=7)


def test_olmo2_decodes_as_it_computes(root) -> None:
    """Step by step, from the first row on, against the unfused full forward in float64."""
    fused = load(root / "specs" / "olmo2.weft", "tiny", {"layers": 2}, torch.float32, passes=GPU_PASSES)
    exact = load(root / "specs" / "olmo2.weft", "tiny", {"layers": 2}, torch.float64, passes=())
    assert isinstance(fused, Model)
    assert isinstance(exact, Model)
    exact.load_state_dict(fused.state_dict())
    given = tokens((6, 1, 9), 260)
    whole = exact(given)
    decoder = Decoder(fused)
    state = decoder.begin(3, 9)
    for place in range(9):
        active = [place < len(x) for x in given]
        row = torch.stack([x[min(place, len(x) - 1)] for x in given])
        logits, state = decoder.step(state, row, active)
        for number, on in enumerate(active):
            if on:
                error = (logits[number].double() - whole[number][place]).abs().max()
                assert error <= 1e-5 * whole[number].abs().max()


def test_a_step_of_olmo2_is_few_calls(root) -> None:
    """Per layer the products, one call each for norm and rotation, attention, gate and residual norms."""
    olmo2 = load(root / "specs" / "olmo2.weft", "tiny", {"layers": 2}, torch.bfloat16, passes=())
    assert isinstance(olmo2, Model)
    graphs = Decoder(olmo2).graphs
    calls: Counter[str] = Counter()
    for node in optimise(modules(graphs.step)[0], GPU_PASSES).graph.nodes:
        assert node.target is not caches.band_mask
        if isinstance(node.target, FusedOp):
            calls[node.target.name] += 1
        elif node.op == "call_function":
            calls[node.target.__name__] += 1
    for other in ("linear", "joined_linears", "getitem", "flatten", "unflatten", "embedding"):
        del calls[other]
    # The angles of all layers are made in the first layer's call; the last residual is one call with the final norm.
    assert calls.pop("attend_step") == 2
    assert sum(calls.values()) == 2 * 4 + 1, calls
    extended = [node.target for node in optimise(modules(graphs.last)[0], GPU_PASSES).graph.nodes]
    assert extended.count(attention_caches.attend_extend) == 2
    assert extended.count(attention_caches.extend_rows) == 1


def test_verify_covers_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded() -> dict[str, Part]:
        found = verify(checked(ONE_LAYER.split("objective")[0]), torch.float32)
        return {part.name: part for part in found if isinstance(part, Part) and part.kind == "decode"}

    parts = decoded()
    assert set(parts) == {"output", "output, in pieces"}
    assert all(part.is_ok for part in parts.values())
    right = attention_decode.attention_decode

    def one_column_less(q, keys, values, position, columns, *rest):
        return right(q, keys, values, position, max(1, columns - 1), *rest)

    monkeypatch.setattr(attention_decode, "attention_decode", one_column_less)
    parts = decoded()
    assert not parts["output"].is_ok
    assert parts["output"].place.startswith("test.weft:9")
