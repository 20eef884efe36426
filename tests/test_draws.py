"""Random draws: the right distributions, and a function of their counter alone."""

from __future__ import annotations

import math

import pytest
import torch

from weft.codegen.functions import draws, packing

COUNT = 200_000


def keys(count: int = COUNT, site: int = 5, seed: int = 1) -> torch.Tensor:
    counters = packing.draw_key(
        torch.tensor(seed),
        torch.tensor(0),
        site,
        torch.arange(1),
        torch.zeros(count, dtype=torch.int64),
        torch.arange(count),
    )
    assert counters.shape == (count,)
    return counters


def test_uniform_is_flat_at_both_ends() -> None:
    x = draws.uniform(keys(), (), torch.float64)
    assert x.min() >= 0
    assert x.max() < 1
    counts = torch.histc(x, 64, 0, 1)
    expected = COUNT / 64
    # Chi squared with 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert float(((counts - expected) ** 2 / expected).sum()) < 63 + 5 * 11.2


def test_low_bits_are_flat_too() -> None:
    x = draws.uniform(keys(), (), torch.float64)
    counts = torch.histc((x * 2**40) % 1, 64, 0, 1)
    expected = COUNT / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 63 + 5 * 11.2


def test_normal_has_its_moments() -> None:
    x = draws.normal(keys(), (), torch.float64)
    error = 5 / math.sqrt(COUNT)
    assert abs(float(x.mean())) < error
    assert abs(float((x**2).mean()) - 1) < error * math.sqrt(2)
    assert abs(float((x**3).mean())) < error * math.sqrt(15)
    assert abs(float((x**4).mean()) - 3) < error * math.sqrt(96)


def test_normal_has_its_tails() -> None:
    x = draws.normal(keys(), (), torch.float64)
    for bound in (1.0, 2.0, 3.0):
        p = math.erfc(bound / math.sqrt(2))
        assert abs(float((x.abs() > bound).double().mean()) - p) < 5 * math.sqrt(p / COUNT)


def test_entries_and_rows_are_independent() -> None:
    x = draws.normal(keys(COUNT // 8), (8,), torch.float64)
    assert x.shape == (COUNT // 8, 8)
    correlations = torch.corrcoef(x.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(COUNT // 8)
    ahead = (x[1:] * x[:-1]).mean()
    assert ahead.abs() < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize(("site", "seed"), [(6, 1), (5, 2)])
def test_sites_and_seeds_are_independent(site: int, seed: int) -> None:
    x, y = draws.normal(keys(), (), torch.float64), draws.normal(keys(site=site, seed=seed), (), torch.float64)
    assert abs(float((x * y).mean())) < 5 / math.sqrt(COUNT)


def test_ints_are_flat() -> None:
    x = draws.uniform_int(3, 10, keys(), ())
    assert x.dtype == torch.int64
    counts = torch.bincount(x, minlength=10)
    assert (counts[:3] == 0).all()
    assert len(counts) == 10
    assert ((counts[3:] - COUNT / 7).abs() < 5 * math.sqrt(COUNT / 7)).all()


def test_ints_take_their_bounds_from_tensors() -> None:
    high = torch.arange(1, 9)
    x = draws.uniform_int(0, high, keys(8), ())
    assert (x >= 0).all()
    assert (x < high).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flags_have_their_share(p: float) -> None:
    x = draws.bernoulli(p, keys(), ())
    assert abs(float(x.double().mean()) - p) <= 5 * math.sqrt(p * (1 - p) / COUNT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_the_same_draw(dtype: torch.dtype) -> None:
    exact, rounded = draws.uniform(keys(1000), (), torch.float64), draws.uniform(keys(1000), (), dtype)
    assert rounded.dtype == dtype
    assert (rounded < 1).all()
    assert float((exact - rounded.double()).abs().max()) <= {torch.float32: 2**-24, torch.float16: 2**-11}.get(
        dtype, 2**-8
    )


def test_packing_changes_nothing() -> None:
    """The rows of example 12 draw the same alone, and as the second of two."""
    lengths, row = torch.tensor([0, 3, 7]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    place = torch.arange(7) - lengths[row]
    both = packing.draw_key(torch.tensor(1), torch.tensor(9), 4, torch.tensor([30, 12]), row, place)
    alone = packing.draw_key(torch.tensor(1), torch.tensor(9), 4, torch.tensor([12]), row[3:] - 1, place[3:])
    assert torch.equal(draws.normal(both, (5,), torch.float32)[3:], draws.normal(alone, (5,), torch.float32))
