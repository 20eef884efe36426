"""The causal frontier against enumerated dependence, at length, and how tight it is.

    python bench/frontier_enumeration.py [--programs N] [--seed S] [--runs R]

Random programs of the toy in tests/frontier_model.py are run on R random sources each, and every source row is changed.
A violation is a value that saw a later row than its frontier allows; there must be none. A step is tight when some row
of some run saw exactly as much as it was allowed to. Left out: steps that are `none`, rows where the bound is no row at
all, and positions, whose bound is that their row exists, which only what reads them sees. The JSON goes to stdout, the
table to stderr.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.frontier_model import allowed, frontiers, violations
from tests.frontier_programs import observe_program, random_program


@dataclass
class Tally:
    """Steps seen with a bound that means something, and how many reached it."""

    steps: int = 0
    tight: int = 0

    @property
    def share(self) -> float:
        return self.tight / self.steps if self.steps else 0.0


@dataclass
class Result:
    programs: int
    values: int
    violations: list[str]
    operators: dict[str, Tally]
    elements: dict[str, Tally]
    seconds: float


def enumerate_programs(programs: int, seed: int, runs: int) -> Result:
    start = time.perf_counter()
    rng = random.Random(seed)
    result = Result(programs, 0, [], defaultdict(Tally), defaultdict(Tally), 0.0)
    for number in range(programs):
        program = random_program(rng)
        claimed = frontiers(program)
        told: set[int] = set()
        reached: set[int] = set()
        for _ in range(runs):
            observed = observe_program(program, rng)
            for found in violations(observed, claimed):
                step = program.steps[found.step]
                result.violations.append(f"program {number} of seed {seed}, step {found.step} ({step.name}): {found}")
            for index, (step, f) in enumerate(zip(program.steps, claimed, strict=True)):
                for row, seen in enumerate(observed.seen[index]):
                    result.values += 1
                    bound = allowed(program, observed.run, step.level, row, f)
                    if bound >= 0:
                        told.add(index)
                        if seen == bound:
                            reached.add(index)
        for index in told:
            step, f = program.steps[index], claimed[index]
            if step.name == "position":
                continue
            for tally in (result.operators[step.name], result.elements[f.kind.value]):
                tally.steps += 1
                tally.tight += index in reached
    result.seconds = time.perf_counter() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    result = enumerate_programs(arguments.programs, arguments.seed, arguments.runs)
    for title, tallies in (("operator", result.operators), ("element", result.elements)):
        print(f"{title:<20} {'steps':>8} {'tight':>7}", file=sys.stderr)
        for name, tally in sorted(tallies.items(), key=lambda item: -item[1].steps):
            print(f"{name:<20} {tally.steps:>8} {tally.share:>7.1%}", file=sys.stderr)
    for line in result.violations[:10]:
        print(line, file=sys.stderr)
    summary = {
        "programs": result.programs,
        "values": result.values,
        "violations": len(result.violations),
        "tight": {
            "operators": {name: round(tally.share, 3) for name, tally in sorted(result.operators.items())},
            "elements": {name: round(tally.share, 3) for name, tally in sorted(result.elements.items())},
        },
        "seconds": round(result.seconds, 1),
    }
    print(json.dumps(summary))
    raise SystemExit(1 if result.violations else 0)


if __name__ == "__main__":
    main()
