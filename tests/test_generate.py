"""Generation: stops, sampling, seeds, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from tests.small_models import DECODER, model, tokens
from weft.runtime.decoder import Decoder
from weft.runtime.errors import GenerateFault, InputFault
from weft.runtime.generate import generate
from weft.runtime.sampling import Sampling, sample, uniform


@pytest.fixture(scope="module")
def small():
    return model(DECODER, torch.float32)


def by_forward(small, prompt, count, eos=None):
    """Greedy continuation with a full forward each time."""
    found = list(prompt)
    for _ in range(count):
        token = int(small([found])[0][-1].argmax())
        if token == eos:
            break
        found.append(token)
    return tuple(found[len(prompt) :])


PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3], [8, 8]]


def test_greedy_equals_forward(small):
    results = generate(small, PROMPTS, 9)
    assert [result.tokens for result in results] == [by_forward(small, prompt, 9) for prompt in PROMPTS]
    assert all(result.stopped is None for result in results)


def test_stops_and_leaves_others_alone(small):
    plain = [result.tokens for result in generate(small, PROMPTS, 12)]
    eos = plain[0][3]
    for result, tokens_ in zip(generate(small, PROMPTS, 12, eos=eos), plain, strict=True):
        expected = tokens_[: tokens_.index(eos)] if eos in tokens_ else tokens_
        assert result.tokens == expected
        assert result.stopped == (eos if eos in tokens_ else None)


def test_samples_do_not_depend_on_neighbours(small):
    options = {"temperature": 1.3, "top_k": 12, "top_p": 0.95}
    together = generate(small, PROMPTS, 8, seed=[10, 11, 12, 13], **options)
    for i, prompt in enumerate(PROMPTS):
        assert generate(small, [prompt], 8, seed=[10 + i], **options)[0] == together[i]
    assert generate(small, PROMPTS, 8, seed=10, **options) == together
    assert generate(small, PROMPTS, 8, seed=99, **options) != together
    assert len({result.tokens for result in generate(small, [[1]] * 4, 8, temperature=2.0)}) > 1


def test_stream_and_begin(small):
    seen: list[tuple[int, int]] = []
    results = generate(small, [[2], []], 4, begin=1, stream=lambda which, token: seen.append((which, token)))
    for which, result in enumerate(results):
        assert tuple(token for w, token in seen if w == which) == result.tokens
    assert results == generate(small, [[1, 2], [1]], 4)


def test_clear_faults(small):
    with pytest.raises(GenerateFault, match="prompt 1 is empty"):
        generate(small, [[1], []], 4)
    with pytest.raises(GenerateFault, match="prompt 0 has 3 tokens, and 4 more make 7: over the capacity of 6"):
        generate(small, [[1, 2, 3]], 4, capacity=6)
    with pytest.raises(GenerateFault, match="the stop token 19 is not among 0 to 18"):
        generate(small, [[1]], 4, eos=19)
    with pytest.raises(GenerateFault, match="temperature"):
        generate(small, [[1]], 4, temperature=-1)
    with pytest.raises(GenerateFault, match="top_p is 0"):
        generate(small, [[1]], 4, top_p=0)
    with pytest.raises(InputFault, match="tokens has 77 at example 0, row 0"):
        generate(small, [[77]], 4)
    assert generate(small, [], 4) == []
    assert generate(small, [[1]], 0)[0].tokens == ()
    assert len(generate(small, [[1, 2]], 4, capacity=6)[0].tokens) == 4


def test_a_model_without_scores_says_so():
    text = """
size dim = 4
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    return previous(x)
"""
    vectors = model(text)
    with pytest.raises(GenerateFault, match="generation needs one input of ids"):
        generate(vectors, [[1]], 2)
    # It still decodes.
    _, state = Decoder(vectors).prefill([torch.ones(2, 4)], 4)
    assert torch.equal(
        Decoder(vectors).step(state, torch.zeros(1, 4, dtype=torch.float64))[0], torch.ones(1, 4).double()
    )


def test_sampling_follows_the_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1])).expand(20_000, 4)
    seeds, positions = torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64)
    counts = torch.bincount(sample(logits, Sampling(1.0), seeds, positions), minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.2, 0.2, 0.1]), rtol=0, atol=0.015)
    kept = sample(logits, Sampling(1.0, top_k=2), seeds, positions)
    assert set(kept.tolist()) == {0, 1}
    kept = sample(logits, Sampling(1.0, top_p=0.6), seeds, positions)
    assert set(kept.tolist()) == {0, 1}
    assert set(sample(logits, Sampling(1.0, top_p=0.01), seeds, positions).tolist()) == {0}
    assert sample(logits, Sampling(), seeds, positions).unique().tolist() == [0]
    draws = uniform(seeds, positions)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert len(draws.unique()) == 20_000


def test_empty_and_long_prompts_of_tensors(small):
    batch = tokens((1, 7))
    assert [r.tokens for r in generate(small, batch, 3)] == [by_forward(small, x.tolist(), 3) for x in batch]


def test_an_empty_prompt_begins_behind_the_end_of_a_document(small):
    alone = generate(small, [[]], 4, eos=3)
    assert alone == generate(small, [[3]], 4, eos=3)
    # Its company is not changed by it.
    assert generate(small, [[5], []], 4, eos=3) == [*generate(small, [[5]], 4, eos=3), *alone]
    with pytest.raises(GenerateFault, match="prompt 0 is empty"):
        generate(small, [[]], 4, eos=(3, 4))


def test_the_coldest_draw_is_the_likeliest_token(small):
    for temperature in (1e-9, 1e-300):
        assert generate(small, PROMPTS, 6, temperature=temperature) == generate(small, PROMPTS, 6)


def test_a_seed_of_too_many_bits(small):
    with pytest.raises(GenerateFault, match="more than 64 bits"):
        generate(small, [[1], [2]], 4, temperature=1.0, seed=2**63 - 1)
