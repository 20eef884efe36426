"""Random specs that are well typed: each means one thing, however it is run (tests/random_checks.py says what holds).

bench/random_specs.py runs as many as one likes.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from .random_checks import Failure, Seen, failure_of, run, smaller
from .random_specs import RandomSpec, random_spec, random_specs

# Each takes about a third of a second.
COUNT = 100


@pytest.mark.parametrize("first", range(0, COUNT, 10))
def test_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        spec = random_spec(seed, 2 + seed % 13)
        failure = failure_of(spec, artifact=seed % 10 == 0)
        assert failure is None, f"seed {seed}: {failure.why}\n{spec.text}"


@settings(deadline=None, max_examples=12, derandomize=True, database=None)
@given(random_specs(most=6))
def test_drawn(spec: RandomSpec) -> None:
    run(spec, artifact=False, seen=Seen())


def test_a_seed_gives_one_text() -> None:
    assert random_spec(5, 8) == random_spec(5, 8)
    assert random_spec(5, 8) != random_spec(6, 8)


def test_most_models_decode() -> None:
    seen = Seen()
    for seed in range(200, 206):
        run(random_spec(seed, 4), artifact=False, seen=seen)
    assert seen.decoded >= 3
    assert seen.kernels >= 6


def test_failing_specs_get_smaller() -> None:
    """What is left of a spec when only a `softmax` matters."""

    def fails(spec: RandomSpec) -> Failure | None:
        return Failure("fused", "fused: off by 1 of 2") if "softmax(" in spec.text else None

    seed = next(seed for seed in range(1000) if "= softmax(" in random_spec(seed, 12).text)
    spec = random_spec(seed, 12)
    failure = fails(spec)
    assert failure is not None
    small = smaller(spec, failure, fails)
    model = small.text[small.text.index("model m(") :].strip().splitlines()
    assert len(model) <= 5, small.text
