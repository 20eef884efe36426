"""Derived decoding: row by row equals one full forward, whatever is carried from row to row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.small_models import DECODER, model, tokens
from weft.codegen.cpu.fixed_norm import FixedNorm
from weft.codegen.cpu.packed_linear import PackedLinear
from weft.codegen.cpu.rowwise import add_rms_norm, rms_norm
from weft.codegen.decode_stages import modules
from weft.codegen.origin import origin
from weft.codegen.passes.constants import constants
from weft.codegen.pipeline import CPU_PASSES
from weft.dsl.diagnostics import SpecErrors
from weft.runtime.decoder import Decoder
from weft.runtime.errors import GenerateFault, InputFault

LENGTHS = (9, 4, 1, 12)

SAME_DOCUMENT = """
size vocab = 11
size dim = 8
size document = 5
axis seq
model m(tokens: id[seq] in vocab, doc: id[seq] in document) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal and same(doc))
    return linear(x, dim -> vocab) as head
init ** = normal(0.5)
"""

STRICTLY_BEFORE = """
size vocab = 11
size dim = 8
axis seq
mask earlier = key(position) < query(position)
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    x = x + attend(x, x, x, over=dim, along=seq, mask=earlier)
    return linear(x, dim -> vocab) as head
init ** = normal(0.5)
"""

BIASED = """
size vocab = 11
size dim = 8
axis seq
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    b = linear(x, dim -> one) as bias
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal, bias=sum(b, over=one))
    return linear(x, dim -> vocab) as head
axis one = 1
init ** = normal(0.5)
"""

ENCODER = """
size vocab = 11
size dim = 8
size label = 3
axis seq
axis source
model translate(words: id[source] in vocab, class: id in label, tokens: id[seq] in vocab) -> real[seq, vocab]:
    e = embed(words, vocab -> dim) as words
    e = e + attend(e, e, e, over=dim, along=source)
    x = embed(tokens, vocab -> dim) as tokens
    x = x + embed(class, label -> dim) as classes
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal)
    x = x + attend(x, e, e, over=dim, along=source)
    return linear(x, dim -> vocab) as head
init ** = normal(0.5)
"""


def compare_everywhere(small, rows, capacity=16, inputs=None, tolerance=1e-10):
    """Prefill half of each sequence, then step by step; then the same in uneven chunks."""
    names = Decoder(small).row_inputs
    whole = small(**{**(inputs or {}), **rows})
    lengths = [len(x) for x in rows[names[0]]]
    decoder = Decoder(small)
    done = [max(1, length // 2) for length in lengths]
    given = {name: [x[:n] for x, n in zip(rows[name], done, strict=True)] for name in names}
    results, state = decoder.prefill(given, capacity, inputs)
    for result, full, n in zip(results, whole, done, strict=True):
        torch.testing.assert_close(result, full[n - 1], rtol=0, atol=tolerance)
    while any(n < length for n, length in zip(done, lengths, strict=True)):
        active = [n < length for n, length in zip(done, lengths, strict=True)]
        step = {
            name: torch.stack([x[min(n, len(x) - 1)] for x, n in zip(rows[name], done, strict=True)]) for name in names
        }
        results, state = decoder.step(state, step, active)
        for i, on in enumerate(active):
            if on:
                torch.testing.assert_close(results[i], whole[i][done[i]], rtol=0, atol=tolerance)
                done[i] += 1
    assert state.known_lengths == tuple(lengths) == tuple(state.lengths.tolist())

    state, done, chunk = decoder.begin(len(lengths), capacity, inputs), [0] * len(lengths), 0
    while done != lengths:
        chunk += 1
        counts = [min((3 * i + 2 * chunk) % 5, n - d) for i, (n, d) in enumerate(zip(lengths, done, strict=True))]
        more = {name: [x[d : d + c] for x, d, c in zip(rows[name], done, counts, strict=True)] for name in names}
        results, state = decoder.extend(state, more)
        expected = torch.cat([f[d : d + c] for f, d, c in zip(whole, done, counts, strict=True)])
        torch.testing.assert_close(results, expected, rtol=0, atol=tolerance)
        done = [d + c for d, c in zip(done, counts, strict=True)]


def test_decoder_equals_forward():
    compare_everywhere(model(DECODER), {"tokens": tokens(LENGTHS)})
    compare_everywhere(model(DECODER, torch.float32), {"tokens": tokens(LENGTHS)}, tolerance=1e-5)


def test_decoder_equals_forward_after_the_passes():
    compare_everywhere(model(DECODER, torch.float32, passes=CPU_PASSES), {"tokens": tokens(LENGTHS)}, tolerance=2e-5)


def test_one_sequence_after_the_passes():
    """One row has orders of the weights of its own."""
    compare_everywhere(model(DECODER, torch.float32, passes=CPU_PASSES), {"tokens": tokens([11])}, tolerance=1e-5)
    compare_everywhere(model(DECODER, torch.bfloat16, passes=CPU_PASSES), {"tokens": tokens([11])}, tolerance=0.15)


def test_a_step_prepares_what_does_not_change():
    (step,) = modules(Decoder(model(DECODER, torch.float32, passes=CPU_PASSES)).graphs.step)
    made = [type(value) for value in constants(step)]
    assert made.count(FixedNorm) == 4
    assert PackedLinear in made
    called = {node.target for node in step.graph.nodes}
    assert not called & {rms_norm, add_rms_norm, functional.linear}


def test_bfloat16_stays_near():
    compare_everywhere(model(DECODER, torch.bfloat16), {"tokens": tokens((5, 1, 8))}, tolerance=0.15)


def test_one_sequence():
    compare_everywhere(model(DECODER), {"tokens": tokens([11])})


@pytest.mark.parametrize("text", [STRICTLY_BEFORE, BIASED], ids=["strictly-before", "biased"])
def test_other_masks(text):
    compare_everywhere(model(text), {"tokens": tokens(LENGTHS, 11)})


def test_mask_that_captures_a_value():
    documents = [torch.sort(x).values for x in tokens(LENGTHS, 5, seed=7)]
    compare_everywhere(model(SAME_DOCUMENT), {"tokens": tokens(LENGTHS, 11), "doc": documents})


def test_inputs_beside_the_rows():
    inputs = {"words": tokens((3, 0, 6, 1), 11, seed=2), "class": [0, 2, 1, 1]}
    compare_everywhere(model(ENCODER), {"tokens": tokens(LENGTHS, 11)}, inputs=inputs)


def test_windows_keep_few_rows():
    caches = Decoder(model(DECODER)).graphs.caches
    slots = [cache.slots for cache in caches]
    assert slots == [3, None, None, 3, 3]  # previous by 2 and one spare, full attention, a window of 3
    assert all(cache.shape(2, 10)[0] == 2 for cache in caches)


def test_sequences_may_leave():
    small, batch = model(DECODER), tokens((5, 2, 7))
    decoder = Decoder(small)
    _, state = decoder.prefill(batch, 9)
    alone, _ = decoder.step(decoder.prefill(batch[2:], 9)[1], torch.tensor([3]))
    kept, state = decoder.step(decoder.select(state, [2, 0]), torch.tensor([3, 4]))
    torch.testing.assert_close(kept[:1], alone, rtol=0, atol=1e-12)
    assert state.known_lengths == (8, 6)
    beside = model(ENCODER)
    decoder, batch = Decoder(beside), tokens((2, 1, 3), 11)
    inputs = {"words": tokens((3, 0, 6), 11, seed=2), "class": [0, 2, 1]}
    _, state = decoder.prefill(batch, 9, inputs)
    every, _ = decoder.step(state, torch.tensor([1, 2, 3]))
    _, state = decoder.prefill(batch, 9, inputs)
    some, _ = decoder.step(decoder.select(state, [2, 0]), torch.tensor([3, 1]))
    torch.testing.assert_close(some, every[[2, 0]], rtol=0, atol=1e-12)


def test_neighbours_do_not_change_a_bit():
    """Equal lengths, other contents: the same bits for a sequence. Other lengths may change how products are split."""
    small, mine = model(DECODER, torch.float32), tokens([4], seed=1)[0]
    results = []
    for seed in (2, 3):
        logits, state = Decoder(small).prefill([mine, *tokens((3, 6), seed=seed)], 12)
        stepped, _ = Decoder(small).step(state, torch.tensor([5, seed, seed + 1]))
        results.append((logits[0], stepped[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_model_that_looks_ahead_says_where():
    text = STRICTLY_BEFORE.replace("mask=earlier", "mask=earlier or key(position) == query(position) + 1")
    with pytest.raises(SpecErrors, match="E402"):
        Decoder(model(text))


def test_capacity():
    decoder = Decoder(model(DECODER))
    with pytest.raises(GenerateFault, match="sequence 1 has 7 rows, more than the capacity of 6"):
        decoder.prefill(tokens((3, 7)), 6)
    _, state = decoder.prefill(tokens((3, 6)), 6)
    with pytest.raises(GenerateFault, match="more than the capacity"):
        decoder.step(state, torch.tensor([1, 1]))
    result, _ = decoder.step(state, torch.tensor([1, 1]), [True, False])  # the full one waits
    assert result.shape == (2, 19)
    with pytest.raises(GenerateFault, match="sequence 0 has no rows"):
        decoder.prefill([[], [1]], 6)
    with pytest.raises(InputFault, match="tokens has 19 at example 0, row 1"):
        decoder.prefill([[1, 19]], 6)


def test_a_result_per_example_is_not_generated():
    """A classifier reads all rows: the diagnostic names the value that does, as for a model that looks ahead."""
    classifier = model("""
size vocab = 11
size dim = 8
axis seq
model m(tokens: id[seq] in vocab) -> real[dim]:
    x = embed(tokens, vocab -> dim) as embed
    pooled = mean(x, over=seq)
    return linear(pooled, dim -> dim) as out
""")
    with pytest.raises(SpecErrors, match=r"E402.*pooled sees all of tokens"):
        Decoder(classifier)


@pytest.mark.parametrize("text", [DECODER, ENCODER], ids=["decoder", "encoder-decoder"])
def test_every_node_of_a_step_knows_where_it_comes_from(text):
    graphs = Decoder(model(text)).graphs
    for graph in (part for whole in (graphs.begin, graphs.extend, graphs.last, graphs.step) for part in modules(whole)):
        for node in graph.graph.nodes:
            assert origin(node).span is not None, node
            assert origin(node).type is not None, node
