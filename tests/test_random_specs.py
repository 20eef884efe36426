"""Random specs that are well typed: each means one thing, however it is run (tests/random_checks.py says what holds).

bench/random_specs.py runs as many as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings

from .random_checks import Failure, Seen, failure_of, run, smaller
from .random_picture_rows import random_picture_spec
from .random_specs import RandomSpec, random_spec, random_specs

# Each takes about a third of a second.
COUNT = 120
PICTURE_COUNT = 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For small tensors a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, COUNT, 10))
def test_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        spec = random_spec(seed, 2 + seed % 13)
        failure = failure_of(spec, artifact=seed % 10 == 0)
        assert failure is None, f"seed {seed}: {failure.why}\n{spec.text}"


@pytest.mark.parametrize("first", range(0, PICTURE_COUNT, 5))
def test_seeds_with_pictures(first: int) -> None:
    for seed in range(first, first + 5):
        spec = random_picture_spec(seed, 1 + seed % 4)
        failure = failure_of(spec, artifact=seed % 10 == 0)
        assert failure is None, f"seed {seed}: {failure.why}\n{spec.text}\n{spec.documents}"


@settings(max_examples=6)
@given(random_specs(most=6))
def test_drawn(spec: RandomSpec) -> None:
    run(spec, artifact=False, seen=Seen())


def test_a_seed_gives_one_text() -> None:
    assert random_spec(5, 8) == random_spec(5, 8)
    assert random_spec(5, 8) != random_spec(6, 8)


def test_most_models_decode() -> None:
    seen = Seen()
    for seed in range(200, 204):
        run(random_spec(seed, 4), artifact=False, seen=seen)
    assert seen.decoded >= 2
    assert seen.kernels >= 4


def test_most_models_with_pictures_decode() -> None:
    seen = Seen()
    for seed in range(200, 204):
        run(random_picture_spec(seed, 2), artifact=False, seen=seen)
    assert seen.decoded >= 2
    assert seen.kernels >= 4


BIG = """
size dim = 4
axis seq

model m(x: real[seq, dim], y: real[seq, dim]):
    a = x + y
    for i in 0 .. 2:
        a = tanh(a)
    b = softmax(a, over=dim)
    c = relu(b)
    return c, a
"""


def test_failing_specs_get_smaller() -> None:
    """What is left of a spec when only a `softmax` matters."""

    def fails(spec: RandomSpec) -> Failure | None:
        return Failure("fused", "fused: off by 1 of 2") if "softmax(" in spec.text else None

    failure = fails(RandomSpec(0, BIG, True))
    assert failure is not None
    small = smaller(RandomSpec(0, BIG, True), failure, fails).text
    model = small[small.index("model m(") :].strip().splitlines()
    assert len(model) <= 5, small
    assert "relu" not in small
    assert "for " not in small
