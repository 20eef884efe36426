"""`weft` as a person runs it: what it prints, and how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.command_server import CommandServer

ROOT = Path(__file__).resolve().parent.parent


@cache
def _server() -> CommandServer:
    return CommandServer(_environment())


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), **os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


def weft(*arguments: str, stdin: str | bytes | None = None, cwd: Path = ROOT, **environment: str):
    """Runs the command in a process of its own; the result has returncode, stdout and stderr."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    if environment:  # which may say what is imported, and what imports do
        command, whole = [sys.executable, "-m", "weft", *arguments], _environment() | environment
        run = subprocess.run(command, input=data, capture_output=True, cwd=cwd, env=whole, timeout=120)
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
