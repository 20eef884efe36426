"""What a user sees when a command fails: one line, never a traceback.

A mistake in a spec is not handled here (it is a diagnostic with a place); this is for everything else: wrong usage,
files, missing extras, an interrupted run, and our own bugs, which leave a report file.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from typer import Abort, Exit
from typer import TyperException as UsageFault

from weft import __version__

# Which extra brings a module that a command needs.
EXTRAS = {
    "torch": "torch",
    "numpy": "torch",
    "safetensors": "torch",
    "jinja2": "torch",
    "pydantic": "train",
    "torchdata": "train",
    "tensorboard": "train",
    "tokenizers": "train",
    "PIL": "train",
    "pyarrow": "train",
    "transformers": "hf",
    "triton": "gpu",
}

_WORDS = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "no space left on the disk",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "too many links",
    errno.EEXIST: "exists already",
}


class CommandFault(Exception):
    """The command cannot go on, for a reason outside the spec: worded for the user, in one line."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def want_checkpoint(path: str) -> None:
    """Raises CommandFault where there can be none. For commands to call before they import torch, which takes
    seconds."""
    if not Path(path).is_dir():
        raise CommandFault(f"{path}: a folder was wanted, a checkpoint or a run that `weft train` wrote", 2)


def report(error: BaseException) -> int:
    """Say on stderr what went wrong; the exit code."""
    match error:
        case Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case BrokenPipeError():
            # The reader (`| head`) has gone. Without this the interpreter complains again when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case KeyboardInterrupt() | Abort():
            _line("interrupted")
            return 130
        case UsageFault():
            return _usage(error)
        case CommandFault():
            _line(str(error))
            return error.code
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in EXTRAS:
            module = (error.name or "").partition(".")[0]
            _line(f"this command needs {module}: pip install 'weft[{EXTRAS[module]}]'")
            return 1
        case OSError() if error.errno in _WORDS:
            _line(f"{error.filename}: {_WORDS[error.errno]}" if error.filename else _WORDS[error.errno])
            return 1
        case MemoryError():
            _line("not enough memory")
            return 1
    match _family(error):
        case "SpecErrors":
            print(error, file=sys.stderr)
            return 1
        case "NotLowered":
            _line(f"not built yet: {error}")
            return 1
        case None:
            return _bug(error)
        case _:
            _line(str(error))
            return 1


# Exceptions that carry a text for the user. Their modules are not imported to ask: an exception's own must have been.
_WORDED = {
    "RuntimeFault": "weft.runtime.errors",
    "SpecErrors": "weft.dsl.diagnostics",
    "NotLowered": "weft.codegen.graph_context",
    "ArtifactError": "weft.codegen.artifact",
}


def _family(error: BaseException) -> str | None:
    for name, module in _WORDED.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return name
    return None


def _usage(error: UsageFault) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    context = getattr(error, "ctx", None)
    hint = f" (try `{context.command_path} --help`)" if context is not None else ""
    _line(" ".join(error.format_message().split()) + hint)
    return 2


def _bug(error: BaseException) -> int:
    """An exception that nobody worded is ours. The report holds what is needed to find it, and nothing of the data."""
    import platform
    import tempfile
    import traceback

    if os.environ.get("WEFT_TRACEBACK"):
        traceback.print_exception(error)
        return 1
    text = "\n".join(
        (
            f"weft {__version__}, python {platform.python_version()}, {platform.platform()}",
            "command: weft " + " ".join(sys.argv[1:]),
            "",
            "".join(traceback.format_exception(error)),
        )
    )
    said = "".join(str(error).splitlines()[:1])
    message = f"this is a bug in weft, not in your spec: {type(error).__name__}" + (f": {said}" if said else "")
    path = Path(tempfile.gettempdir()) / f"weft-bug-{os.getpid()}.txt"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        _line(message + " (set WEFT_TRACEBACK=1 to see where)")
    else:
        _line(f"{message} (report: {path}; WEFT_TRACEBACK=1 prints it)")
    return 1


def _line(message: str) -> None:
    print(f"weft: {message}", file=sys.stderr)
