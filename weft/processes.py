"""Starts the processes of one run on this machine, and waits for them.

Each runs the same command with what torchrun would put into its environment, so a run is the same whoever started it.
The processes tell each other when one ends (runtime/ranks.py), and one of them says why. Signals are passed on to all,
which agree on the step after which they stop; one that hangs because another is gone is killed. If this process is
killed itself, they stop as after a signal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from weft.faults import CommandFault
from weft.runtime.rank_place import SILENT, Place

MEETING = "WEFT_MEETING"  # where the processes that are started here meet; torchrun has variables of its own
GRACE = 15.0  # seconds for the others to end by themselves


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Which of several processes this is, by the variables of torchrun; None where it is the only one."""
    try:
        number, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        on_machine = int(environment.get("LOCAL_RANK", number))
    except KeyError:
        return None
    except ValueError:
        raise CommandFault("RANK, WORLD_SIZE and LOCAL_RANK are set, and not to numbers: torchrun sets them") from None
    meeting = environment.get(MEETING)
    return Place(number, count, on_machine) if meeting is None else Place(number, count, on_machine, meeting)


def start(count: int) -> int:
    """Runs this command `count` times, as ranks 0 .. count - 1; the exit code."""
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        shared = {
            **os.environ,
            "WORLD_SIZE": str(count),
            MEETING: f"file://{folder}/meeting",
            # Torch takes all cores for each process otherwise.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1))),
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL"),  # of connections that break
        }
        ranks = [_start(number, shared) for number in range(count)]
        try:
            with _passing_on(ranks):
                codes = _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
    return _exit_code(codes)


def _start(number: int, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
    own = {"RANK": str(number), "LOCAL_RANK": str(number)}
    command = [sys.executable, "-m", "weft", *sys.argv[1:]]
    # In a session of its own: a Ctrl-C in the terminal reaches it once, from here. Its stdin ends with this process.
    return subprocess.Popen(command, env={**shared, **own}, stdin=subprocess.PIPE, start_new_session=True)


def stop_with_the_starter(environment: Mapping[str, str]) -> None:
    """In a process that `start` has started."""
    if MEETING not in environment:
        return

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _passing_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals that ask for an end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # there are systems without the last, which a closed terminal sends
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The exit codes. Once one has failed the others have a little time left."""
    until = None
    while any(rank.poll() is None for rank in ranks):
        failed = any(rank.returncode not in (None, 0) for rank in ranks)
        if failed and until is None:
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    return [rank.returncode for rank in ranks]


def _exit_code(codes: Sequence[int]) -> int:
    """That of the process that said why, if there is one."""
    said = [code for code in codes if code > 0 and code != SILENT]
    if said:
        return said[0]
    killed = [number for number, code in enumerate(codes) if code < 0]
    if killed:
        names = " and ".join(str(number) for number in killed)
        what = signal.Signals(-codes[killed[0]]).name
        raise CommandFault(f"process {names} of {len(codes)} (counted from 0) ended by {what}: --resume goes on")
    return 1 if any(codes) else 0
