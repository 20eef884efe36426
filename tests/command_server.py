"""Runs `weft` in copies of a process that has imported what commands import.

A new interpreter needs seconds for that, most of them for torch, and the tests run hundreds of commands. Each runs in a
process of its own still: a fork of one that has imported modules and done nothing else.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

LIMIT = 300  # seconds of a command, then it gets a signal; those beside it may have the cores meanwhile
IMPORTED = (
    "weft.cli", "torch", "torch.distributed.checkpoint", "torch.utils.data", "triton", "pydantic", "safetensors.torch",
    "tokenizers", "torchdata.nodes", "torch.utils.tensorboard", "PIL.Image", "weft.codegen.pipeline",
    "weft.runtime.model", "weft.runtime.verify",
)  # fmt: skip


class CommandServer:
    """Started with an environment, which is each command's too but for what is read when it runs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command, pipe = [sys.executable, __file__], subprocess.PIPE
        self._server = subprocess.Popen(command, env=dict(environment), text=True, stdin=pipe, stdout=pipe)

    def run(
        self, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], data: bytes | None
    ) -> subprocess.CompletedProcess[bytes]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
            given.write_bytes(data or b"")
            asked = [arguments, str(cwd), dict(environment), str(given), str(out), str(err)]
            self._server.stdin.write(json.dumps(asked) + "\n")
            self._server.stdin.flush()
            code = json.loads(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, out.read_bytes(), err.read_bytes())


def serve() -> None:
    """Reads commands, a line each, and answers with their exit codes. Returns in a copy that is to run one."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    sys.path[0] = os.getcwd()
    for name in IMPORTED:
        with suppress(ImportError):  # an extra that is not installed
            import_module(name)
    while line := commands.readline():
        child = os.fork()
        if child == 0:
            os.close(commands.fileno())
            os.close(answers.fileno())
            become(*json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    os._exit(0)


def become(arguments: list[str], cwd: str, environment: dict[str, str], given: str, out: str, err: str) -> None:
    """This process as if it had been started as `python -m weft`."""
    signal.alarm(LIMIT)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(given, os.O_RDONLY), 0)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv[:] = ["weft", *arguments]
    sys.path[0] = cwd


def run() -> None:
    """The command, and what an interpreter does at its end, but for taking down each module: that takes a second."""
    code = 0
    try:
        import_module("weft.cli").main(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter would show it
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
    run()
