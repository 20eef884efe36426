"""How long a person waits for `weft --help` and `weft check`: cold processes, median of ten.

    python bench/startup.py [--runs N]

Each run is a new interpreter. `python -c pass` is measured beside them, alternately, so that a slow machine or a busy
moment shows as such. Compiled modules are kept from run to run, as Python does unless told otherwise: in a folder of
our own, whatever PYTHONDONTWRITEBYTECODE says and whoever may write to the checkout. The text goes to stderr and the
JSON to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 10

# name: (arguments of the interpreter, limit in seconds or None)
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "interpreter": (["-c", "pass"], None),
    "help": (["-m", "weft", "--help"], 0.3),
    "check": (["-m", "weft", "check", "specs/olmo2.weft"], 0.4),
}


def once(arguments: list[str], compiled: str) -> float:
    """Seconds of one process, from start to exit. `compiled`: the folder of compiled modules."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = compiled
    command = [sys.executable, *arguments]
    start = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{run.stdout}{run.stderr}")
    return seconds


def measure(runs: int = RUNS) -> dict[str, dict[str, object]]:
    """Median, least and all seconds of each command."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as compiled:
        for arguments, _ in COMMANDS.values():
            once(arguments, compiled)  # compiles every module it imports
        for _ in range(runs):
            for name, (arguments, _limit) in COMMANDS.items():
                seconds[name].append(once(arguments, compiled))
    return {
        name: {
            "median_s": round(statistics.median(values), 4),
            "min_s": round(min(values), 4),
            "limit_s": COMMANDS[name][1],
            "runs_s": [round(value, 4) for value in values],
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    result = measure(arguments.runs)
    for name, row in result.items():
        limit = f", limit {row['limit_s']} s" if row["limit_s"] else ""
        print(f"{name:12} median {row['median_s']:.3f} s, least {row['min_s']:.3f} s{limit}", file=sys.stderr)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
