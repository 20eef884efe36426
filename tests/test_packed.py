"""Batches of unequal examples: results as one by one, in every form, and clear faults for what does not fit."""

from __future__ import annotations

import pytest
import torch

from tests.small_models import DECODER, LEVELS, model, tokens
from weft.runtime.errors import InputFault

LENGTHS = (5, 1, 2, 13, 1, 8)


@pytest.fixture(scope="module")
def decoder():
    return model(DECODER)


@pytest.fixture(scope="module")
def levels():
    return model(LEVELS)


def levels_inputs(count: int, lengths=(3, 0, 5), frames=(2, 4, 1)):
    generator = torch.Generator().manual_seed(1)
    return {
        "tokens": tokens(lengths[:count], 7),
        "image": [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in frames[:count]],
        "class": [2, 0, 1][:count],
        "scale": [0.5, 2.0, -1.0][:count],
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_packed_equals_one_by_one(dtype, tolerance):
    small = model(DECODER, dtype)
    batch = tokens(LENGTHS)
    for example, together in zip(batch, small(batch), strict=True):
        alone = small([example])[0]
        assert alone.shape == together.shape
        torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)


def test_several_ragged_axes_and_levels(levels):
    inputs = levels_inputs(3)
    together = levels(**inputs)
    for i, result in enumerate(together):
        one = {name: value[i : i + 1] for name, value in inputs.items()}
        torch.testing.assert_close(levels(**one)[0], result, rtol=0, atol=1e-12)


def test_neighbours_do_not_change_a_bit(decoder):
    """Same lengths, other contents beside it: the same bits. Attention runs example by example; every matrix product
    has the same number of rows. Other lengths may pick another kernel for the product: there results are only close."""
    mine = tokens([6], seed=1)[0]
    first = decoder([*tokens([4, 7], seed=2), mine, *tokens([3], seed=3)])[2]
    second = decoder([*tokens([4, 7], seed=4), mine, *tokens([3], seed=5)])[2]
    assert torch.equal(first, second)


def test_order_does_not_matter(decoder):
    batch = tokens(LENGTHS)
    forwards, backwards = decoder(batch), decoder(batch[::-1])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_forms(decoder):
    batch = tokens((3, 1, 4))
    listed = decoder(batch)
    assert isinstance(listed, list)
    numbers = decoder([example.tolist() for example in batch])
    packed = decoder((torch.cat(batch), torch.tensor([0, 3, 4, 8], dtype=torch.int32)))
    assert torch.equal(packed.values, torch.cat(listed))
    assert packed.offsets.tolist() == [0, 3, 4, 8]
    nested = decoder(torch.nested.nested_tensor(batch, layout=torch.jagged))
    assert nested.is_nested
    for a, b, c in zip(listed, numbers, nested.unbind(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_other_integer_types(decoder):
    batch = tokens((3, 2))
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(decoder([x.to(dtype) for x in batch])[0], decoder(batch)[0])


def test_gradients_of_a_batch_are_the_sum(decoder):
    """The loss of a batch is the sum of its examples' sums, and so is its gradient."""
    batch = tokens((5, 1, 1, 7))
    weight = dict(decoder.named_parameters())["embed.weight"]

    def gradient(examples):
        total, count = decoder.loss(tokens=examples)["text"]
        return torch.autograd.grad(total, weight)[0], int(count)

    whole, count = gradient(batch)
    parts = [gradient([example]) for example in batch]
    assert count == sum(part[1] for part in parts) == 4 + 0 + 0 + 6
    torch.testing.assert_close(whole, sum(part[0] for part in parts), rtol=0, atol=1e-12)


NOISY = """
size dim = 5
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    return linear(x, dim -> dim) as out

objective denoise(x: real[seq, dim]):
    noise = normal(like=x)
    loss error = sum((m(x + noise) - noise)^2, over=dim)
"""


def test_draws_do_not_depend_on_packing():
    small = model(NOISY)
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 1, 6)]
    ids = [7, 3, 5]

    def loss(which, **options):
        chosen = {"x": [batch[i] for i in which], "example_ids": [ids[i] for i in which]}
        return small.loss(**chosen, **options)["error"][0].item()

    whole = loss([0, 1, 2])
    assert whole == pytest.approx(loss([2]) + loss([0, 1]), rel=1e-12)
    assert whole == pytest.approx(loss([2, 1, 0]), rel=1e-12)
    assert whole != pytest.approx(loss([0, 1, 2], step=1), rel=1e-3)
    assert whole != pytest.approx(loss([0, 1, 2], seed=1), rel=1e-3)
    assert loss([0], seed=4, step=2) == loss([0], seed=4, step=2)


def offsets(*numbers: int, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


FAULTS = {
    "tokens has 19 at example 1, row 1: id[seq] in vocab allows 0 to 18": [[1, 2], [3, 19]],
    "tokens has -1 at example 0, row 0: id[seq] in vocab allows 0 to 18": [[-1]],
    "example 0 of tokens is float32, not an integer type (id[seq] in vocab)": [torch.zeros(3)],
    "example 0 of tokens is bool, not an integer type (id[seq] in vocab)": [torch.zeros(3, dtype=torch.bool)],
    "example 1 of tokens has shape [2, 2], not [rows] (id[seq] in vocab)": [[1], [[1, 2], [3, 4]]],
    "tokens has no examples: a batch needs at least one": [],
    "tokens is one tensor of shape [4]: give a list with one tensor per example, a jagged nested tensor, or (values, "
    "offsets)": torch.tensor([1, 2, 3, 4]),
    "tokens is str: give a list with one tensor per example": "text",
    "the offsets of tokens start at 1, not at 0": (torch.tensor([1, 2]), offsets(1, 2)),
    "the offsets of tokens fall from 2 to 1 at example 1": (torch.tensor([1, 2]), offsets(0, 2, 1)),
    "the offsets of tokens end at 3, but there are 2 rows": (torch.tensor([1, 2]), offsets(0, 3)),
    "example 1 is empty: it has no rows of seq": [[1, 2], []],
    "example 0 is empty: it has no rows of seq": (torch.tensor([1, 2]), offsets(0, 0, 2)),
    "tokens is on the meta device, which holds no data": [torch.zeros(2, dtype=torch.int64, device="meta")],
    "the offsets of tokens are float32, not int32": (torch.tensor([1, 2]), torch.tensor([0.0, 2.0])),
    "the offsets of tokens have shape [1, 2], not [batch + 1]": (torch.tensor([1, 2]), offsets(0, 2)[None]),
    "tokens has no examples: a batch needs at least one ": (
        torch.tensor([], dtype=torch.int64),
        offsets(0),
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults(decoder, message):
    with pytest.raises(InputFault) as fault:
        decoder(FAULTS[message])
    assert str(fault.value) == message.strip()


def test_faults_of_arguments(decoder, levels):
    with pytest.raises(InputFault, match="tokens is missing"):
        decoder()
    with pytest.raises(InputFault, match="there is no input words"):
        decoder(words=[[1]])
    with pytest.raises(InputFault, match="2 inputs were given"):
        decoder([[1]], [[1]])
    inputs = levels_inputs(3)
    with pytest.raises(InputFault, match="tokens has 3 examples, image has 2"):
        levels(**{**inputs, "image": inputs["image"][:2]})
    with pytest.raises(InputFault, match=r"class has 3 at example 1: id in label allows 0 to 2"):
        levels(**{**inputs, "class": [0, 3, 0]})
    with pytest.raises(InputFault, match=r"example 0 of image has shape \[2, 5\], not \[rows, 6\]"):
        levels(**{**inputs, "image": [torch.zeros(2, 5)] * 3})


def test_inputs_that_share_an_axis():
    text = """
size dim = 4
axis seq
model sum_of(a: real[seq, dim], b: real[seq, dim]) -> real[seq, dim]:
    return a + b
"""
    small = model(text)
    with pytest.raises(InputFault, match="example 1 has 2 rows of seq in a, but 3 in b"):
        small([torch.zeros(1, 4), torch.zeros(2, 4)], [torch.zeros(1, 4), torch.zeros(3, 4)])
