"""`weft` as a person runs it: what it prints, and how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.command_server import LIMIT, CommandServer

ROOT = Path(__file__).resolve().parent.parent


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), **os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


# Before any test runs: what one of them sets for a while is not what the server keeps for all behind it.
STARTED_WITH = _environment()


@cache
def _server() -> CommandServer:
    return CommandServer(STARTED_WITH)


def weft(*arguments: str, stdin: str | bytes | None = None, cwd: Path = ROOT, **environment: str):
    """Runs the command in a process of its own; the result has returncode, stdout and stderr."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    if environment:  # which may say what is imported, and what imports do
        command, whole = [sys.executable, "-m", "weft", *arguments], _environment() | environment
        run = subprocess.run(command, input=data, capture_output=True, cwd=cwd, env=whole, timeout=LIMIT)
    else:
        run = _server().run(arguments, cwd, _environment(), data)
    out, err = run.stdout.decode(), run.stderr.decode()
    assert "Traceback" not in out + err, err
    return subprocess.CompletedProcess(run.args, run.returncode, out, err)


def says(run: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    """Exit code, and one line on stderr that holds the parts."""
    assert run.returncode == code, run.stdout + run.stderr
    assert run.stderr.startswith("weft: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    for part in parts:
        assert part in run.stderr, run.stderr
