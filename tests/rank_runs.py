"""Training runs on several processes, for tests: `python -m tests.rank_runs JOBS.json RESULTS.json`.

Jobs, `{name: {"ranks": 2, "config": {..}, "kills": null}, ..}`, are done one after another. Ranks are forks of this
process, which has imported everything and computed nothing, so a run starts in no time. `kills` is a rank that is
killed in the middle of its fourth step. Results, by name: the exit codes, and what was said on stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

# Torch imports this with the first optimiser; imported here, no rank has to.
import torch._dynamo

from weft.faults import report
from weft.runtime import shards, train_step  # noqa: F401
from weft.runtime.rank_place import Place
from weft.runtime.ranks import joined
from weft.runtime.run_config import make_config
from weft.runtime.train import train

KILLED_AT = 4


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({name: _run(job) for name, job in jobs.items()}))


def _run(job: dict[str, Any]) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        ranks = [_fork(job, number, f"file://{folder}/meeting", said.fileno()) for number in range(job["ranks"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        said.seek(0)
        return codes, said.read().decode()


def _fork(job: dict[str, Any], number: int, meeting: str, stderr: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(stderr, 2)
        if job.get("kills") == number:
            _die_in_a_step()
        torch.set_num_threads(1)
        with joined(Place(number, job["ranks"], number, meeting), "cpu") as ranks:
            train(make_config({**job["config"], "processes": job["ranks"]}), ranks=ranks)
        code = 0
    except BaseException as error:  # noqa: BLE001 - as the command line does
        code = report(error)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_in_a_step() -> None:
    """Between the forward and the backward."""
    add_up, steps = train_step._of_all, count(1)

    def killed(ranks: Any, parts: Any) -> Any:
        if next(steps) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return add_up(ranks, parts)

    train_step._of_all = killed


if __name__ == "__main__":
    main()
