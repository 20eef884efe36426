"""Random specs, as many as one likes: checked, formatted, run in every way, compared with the unfused graph in float64.

    python bench/random_specs.py --count 2000 [--seed 0] [--jobs 2] [--pictures]

Each spec follows from its number, which counts from --seed; with --pictures its rows are words and places of pictures.
The first failure of each sort is made smaller, printed and kept in `random_spec_failures/`; run it again with --seed N
--count 1. What must hold stands in tests/random_checks.py.
A spec that ends its process is a failure of its own sort, and the others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.random_specs import RandomSpec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Kernels run on this machine's CPU; read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Outcome:
    seed: int
    seconds: float
    sort: str | None
    why: str
    text: str
    decoded: int
    kernels: int
    undecodable: tuple[str, ...]


ENDED = "the process ended"
# Specs that one set of processes runs before the next takes over.
SHARE = 400


def spec_of(seed: int, pictures: bool) -> RandomSpec:
    from tests.random_picture_rows import random_picture_spec
    from tests.random_specs import random_spec

    return random_picture_spec(seed, 2 + seed % 11) if pictures else random_spec(seed, 2 + seed % 15)


def attempt(seed: int, pictures: bool, running: Path) -> Outcome:
    """Runs one spec. Every tenth is also compiled to a folder, twice. `running`: a folder that says who runs what."""
    from tests.random_checks import Seen, failure_of

    (running / str(os.getpid())).write_text(str(seed), encoding="ascii")
    started, seen = time.monotonic(), Seen()
    spec = spec_of(seed, pictures)
    failure = failure_of(spec, seed % 10 == 0, seen)
    sort, why = (None, "") if failure is None else (failure.sort, failure.why)
    took = time.monotonic() - started
    return Outcome(seed, took, sort, why, spec.text, seen.decoded, seen.kernels, tuple(seen.undecodable))


def outcomes(first: int, count: int, jobs: int, pictures: bool) -> Iterator[Outcome]:
    """In processes of their own: a library can end the one it runs in."""
    end = first + count
    for start in range(first, end, SHARE):
        yield from _outcomes(list(range(start, min(start + SHARE, end))), jobs, pictures)


def _outcomes(seeds: list[int], jobs: int, pictures: bool) -> Iterator[Outcome]:
    with TemporaryDirectory() as folder:
        running = Path(folder)
        done: set[int] = set()
        try:
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
                for future in [pool.submit(attempt, seed, pictures, running) for seed in seeds]:
                    outcome = future.result()
                    done.add(outcome.seed)
                    yield outcome
        except BrokenProcessPool:
            suspects = {int(file.read_text("ascii")) for file in running.iterdir()} - done
            if len(seeds) == 1:
                yield Outcome(seeds[0], 0, ENDED, ENDED, spec_of(seeds[0], pictures).text, 0, 0, ())
                return
            # One of them ended it; what it was is seen when each runs alone.
            for seed in sorted(suspects):
                yield from _outcomes([seed], 1, pictures)
            yield from _outcomes([seed for seed in seeds if seed not in done | suspects], jobs, pictures)


def minimised(outcome: Outcome, pictures: bool) -> str:
    from tests.random_checks import Failure, failure_of, smaller

    spec = spec_of(outcome.seed, pictures)
    if outcome.sort == ENDED:
        return f"{spec.text}\n# {ENDED}\n"  # trying a smaller one would end this process
    small = smaller(spec, Failure(outcome.sort or "", outcome.why))
    failure = failure_of(small)
    return f"{small.text}\n# {failure.why.strip().splitlines()[-1] if failure else 'does not fail alone'}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="number of the first spec")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pictures", action="store_true", help="rows are words and the places of pictures")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    folder = Path("random_spec_failures")
    sorts: Counter[str] = Counter()
    undecodable: Counter[str] = Counter()
    decoded = kernels = done = 0
    started = reported = time.monotonic()
    for outcome in outcomes(options.seed, options.count, options.jobs, options.pictures):
        done += 1
        decoded, kernels = decoded + outcome.decoded, kernels + outcome.kernels
        undecodable.update(outcome.undecodable)
        if outcome.sort is not None:
            sorts[outcome.sort] += 1
            if sorts[outcome.sort] == 1:
                folder.mkdir(exist_ok=True)
                file = folder / f"{outcome.seed}.weft"
                file.write_text(minimised(outcome, options.pictures), encoding="utf-8")
                print(f"---- seed {outcome.seed}: {outcome.why}\n{file.read_text('utf-8')}", flush=True)
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            print(f"{done} of {options.count} in {reported - started:.0f} s, {sum(sorts.values())} failed", flush=True)
    print(
        f"{done} specs from seed {options.seed} in {time.monotonic() - started:.0f} s: {decoded} decoded, "
        f"{kernels} fused calls, {sum(sorts.values())} failures of {len(sorts)} sorts"
    )
    for what, count in (*sorts.most_common(), *undecodable.most_common()):
        print(f"  {count:5}  {what}")
    sys.exit(bool(sorts))


if __name__ == "__main__":
    main()
