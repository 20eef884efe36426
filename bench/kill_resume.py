"""Kill a training run at random moments, resume it each time, and compare the end with that of an undisturbed run.

    python bench/kill_resume.py                     20 kills; exit code 1 if a single bit differs
    python bench/kill_resume.py --kills 4 --steps 20 --seed 7

Kills are SIGKILL and of three kinds, in turn: at a random time; inside the writing of a checkpoint (before a random one
of its writes); with half a line of the log written. Each run is a fork of this process, which has imported everything
and computed nothing: a start costs milliseconds, so most kills hit the loop and not the import.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Torch imports this with the first optimiser; imported here, no child has to.
import torch._dynamo  # noqa: F401

from weft.runtime import checkpoint, metrics
from weft.runtime.errors import RuntimeFault
from weft.runtime.events import Event, RunStarted
from weft.runtime.run_config import make_config
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.train import train

SPEC = """size tiny: dim = 16, vocab = 260

axis seq

model toy(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    return linear(x, dim -> vocab) as head

objective noisy(tokens: id[seq] in vocab):
    logits = toy(tokens)
    loss text = cross_entropy(logits + 0.1 * normal(like=logits), next(tokens))

optimise by adamw(lr=1e-2, decay=0.1, clip=1.0):
    embed: decay=0
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--spec", help="a spec file instead of the built-in one")
    parser.add_argument("--size", help="its size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> int:
    """Runs both and compares the folders."""
    base = prepare(folder, arguments)
    if run({**base, "out": str(folder / "whole")}) != 0:
        print("the undisturbed run failed")
        return 1
    duration = loop_seconds(folder / "whole")
    print(f"undisturbed: {arguments.steps} steps in {duration:.1f} s")

    moments = random.Random(arguments.seed)
    out = folder / "killed"
    kills = tries = 0
    while kills < arguments.kills:
        tries += 1
        if tries > 20 * arguments.kills:
            print("the run ends before it can be killed: give more --steps")
            return 1
        kill = a_kill(kills, moments, 2 * duration / (arguments.kills + 1))
        ended = run({**base, "out": str(out), "resume": can_resume(out)}, kill)
        if ended == -signal.SIGKILL:
            kills += 1
            print(f"kill {kills}: {where(out)}")
        elif ended == 0:
            # It got to the end first: go back a little, so that there is something left to kill.
            go_back(out)
        else:
            print(f"a resumed run failed (exit {ended})")
            return 1
    if run({**base, "out": str(out), "resume": can_resume(out)}) != 0:
        print("the last resumed run failed")
        return 1
    differing = differences(folder / "whole", out)
    print("\n".join(differing) if differing else f"{kills} kills, and not a bit differs")
    return 1 if differing else 0


def prepare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The spec, the text and the config that both runs share."""
    text = folder / "text.txt"
    words = random.Random(1)
    vocabulary = ("weft", "warp", "loom", "thread", "woven")
    text.write_text(" ".join(words.choice(vocabulary) for _ in range(4000)))
    spec = folder / "toy.weft"
    spec.write_text(SPEC)
    return {
        "spec": arguments.spec or str(spec),
        "size": arguments.size or "tiny",
        "data": [str(text)],
        "max_length": 64,
        "tokens_per_step": 256,
        "accumulate": 2,
        "steps": arguments.steps,
        "save_every": max(arguments.steps // (3 * arguments.kills + 1), 2),
        "keep": 2,
        "eval_every": max(arguments.steps // 10, 1),
        "threads": 1,
        "tensorboard": "off",
    }


Kill = Callable[[], float | None]


def a_kill(number: int, moments: random.Random, longest: float) -> Kill:
    """What a child does to be killed; gives the seconds after which the parent does it, None when the child does."""
    kind = number % 3
    call, delay = moments.randrange(1, 14), moments.uniform(0, longest)

    def at_a_time() -> float:
        return delay

    def inside_a_checkpoint() -> None:
        die_at_call(checkpoint, "_sync", call)

    def inside_a_line() -> None:
        write = metrics.JsonLines.append

        def half(log: metrics.JsonLines, record: Any) -> None:
            if record.get("step", 0) % 7 == call % 7 and log.path.name == metrics.METRICS:
                with log.path.open("ab") as file:
                    file.write(json.dumps(record)[:20].encode())
                die()
            write(log, record)

        setattr(metrics.JsonLines, "append", half)  # noqa: B010  its parameters have other names

    return (at_a_time, inside_a_checkpoint, inside_a_line)[kind]


def die_at_call(module: Any, name: str, call: int) -> None:
    original, calls = getattr(module, name), [0]

    def counted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            die()
        return original(*args)

    setattr(module, name, counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(config: dict[str, Any], kill: Kill | None = None) -> int:
    """One training run in a child; its exit code, or minus the signal that ended it."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        os._exit(in_child(config, kill, told))
    os.close(told)
    delay = b"".join(iter(lambda: os.read(ready, 64), b""))
    os.close(ready)
    if delay:
        time.sleep(float(delay))
        # The child may have ended meanwhile; until it is waited for, its number is not given to another.
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(config: dict[str, Any], kill: Kill | None, told: int) -> int:
    delay = kill() if kill is not None else None

    def on_event(event: Event) -> None:
        # The time counts from the first step on.
        if isinstance(event, RunStarted):
            if delay is not None:
                os.write(told, str(delay).encode())
            os.close(told)

    try:
        train(make_config(config), on_event)
    except RuntimeFault as fault:
        print(fault, file=sys.stderr, flush=True)
        return 1
    except BaseException:  # noqa: BLE001  a child must never go on as if it were its parent
        traceback.print_exc()
        return 2
    return 0


def loop_seconds(out: Path) -> float:
    last = (out / metrics.TIMING).read_bytes().splitlines()[-1]
    return float(json.loads(last)["seconds"])


def can_resume(out: Path) -> bool:
    return (out / "run.json").is_file()


def where(out: Path) -> str:
    lines = (out / metrics.METRICS).read_bytes().splitlines() if (out / metrics.METRICS).is_file() else []
    try:
        return f"{len(lines)} lines logged, resumes at {latest_checkpoint(out).name}"
    except RuntimeFault:
        return f"{len(lines)} lines logged, no checkpoint yet"


def go_back(out: Path) -> None:
    """Takes the newest checkpoint away, as if the run had been killed before it."""
    shutil.rmtree(latest_checkpoint(out))


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs of the final state: weights, optimiser, position in the data, log."""
    found = []
    first, second = latest_checkpoint(whole), latest_checkpoint(killed)
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMISER, checkpoint.LOADER):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(f"{name} differs")
    if (whole / metrics.METRICS).read_bytes() != (killed / metrics.METRICS).read_bytes():
        found.append(f"{metrics.METRICS} differs")
    return found


if __name__ == "__main__":
    sys.exit(main())
