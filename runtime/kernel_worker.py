"""The process in which `ahead_of_time` compiles: one kernel per line of JSON on stdin, one answer per line on stdout.

    python -m weft.runtime.kernel_worker      with TRITON_INTERPRET unset and a cache folder of its own

It is a process because an LLVM error ends it, and because Triton decides when it is imported whether it interprets.
What compilers print goes to stderr. A job is `{"kernel": KernelText as a dict, "target": [backend, arch, warp size]}`;
the first line, before any job, says which Triton this is.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

# Also the name of the file in line information: "kernels.py" whatever the machine, so that texts can be compared.
MODULE = "kernels"
FILE = "kernels.py"


def main() -> None:
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Nothing that a compiler prints may come between the answers.
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    import triton

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    answer({"triton": triton.__version__})
    while True:
        job = json.loads(jobs.get())
        start = time.perf_counter()
        try:
            made = _compile(job["kernel"], job["target"])
        except Exception as error:  # noqa: BLE001  compilers raise anything; it belongs to this kernel, and others go on
            # A full disk or memory says nothing about the kernel.
            lasting = not isinstance(error, (OSError, MemoryError))
            made = {"error": _worded(error), "lasting": lasting, "seconds": time.perf_counter() - start}
        answer({name: _portable(value) if isinstance(value, str) else value for name, value in made.items()})


def _listen(jobs: queue.Queue[str]) -> None:
    """Ends the process with the one that asked, even while something compiles."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _compile(kernel: dict[str, Any], target: list[Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend

    function = _function(kernel["name"], kernel["text"])
    gpu = GPUTarget(*target)
    described = as_launched(kernel, function, make_backend(gpu))
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    options = {"num_warps": kernel["warps"], "num_stages": kernel["stages"]}
    if kernel["registers"] is not None and gpu.backend == "cuda":
        options["maxnreg"] = kernel["registers"]
    log = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(log):
        made = triton.compile(ASTSource(function, *described), target=gpu, options=options)
    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "metadata": {
            "shared": made.metadata.shared,
            "warps": made.metadata.num_warps,
            "stages": made.metadata.num_stages,
        },
        "log": log.getvalue(),
    }
    if gpu.backend == "hip":
        return answer | {"assembly": made.asm["amdgcn"]}
    return answer | {"assembly": made.asm["ptx"]} | _inspected(made.asm["cubin"])


def as_launched(kernel: dict[str, Any], function: Any, backend: Any) -> tuple[dict[str, str], dict, dict]:
    """Signature, constants and attributes, as Triton's launcher would make them of the arguments."""
    names = function.arg_names
    types_of = dict(kernel["arguments"])
    constants = {(names.index(name),): value for name, value in _constants(kernel, function).items()}
    attrs = {}
    for name, type_ in types_of.items():
        # In the launcher's words: D, a multiple of 16; S, a tensor within 2 GiB, which only AMD asks for.
        says = ("D" if name in kernel["divisible"] else "") + ("S" if type_.startswith("*") else "")
        if parsed := backend.parse_attr(says):
            attrs[(names.index(name),)] = parsed
    return {name: types_of.get(name, "constexpr") for name in names}, constants, attrs


def _function(name: str, text: str) -> Any:
    """The kernel, from a module that exists as text only."""
    # Triton asks for the source lines of a function; they are found here as if the module had a loader.
    linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)
    module = types.ModuleType(MODULE)
    module.__file__ = FILE
    sys.modules[MODULE] = module
    exec(compile(text, FILE, "exec"), module.__dict__)  # noqa: S102  our own generated kernels, run as an artifact would
    function = getattr(module, name, None)
    if not hasattr(function, "arg_names"):
        raise ValueError(f"the text defines no jitted function `{name}`")
    return function


def _constants(kernel: dict[str, Any], function: Any) -> dict[str, Any]:
    """Every parameter is an argument or a constant; a constant with a default may be left out."""
    given = {name: _value(value) for name, value in kernel["constants"]}
    passed = {name for name, _ in kernel["arguments"]}
    unknown = sorted((passed | set(given)) - set(function.arg_names))
    both = sorted(passed & set(given))
    constants = {}
    missing = []
    for parameter in function.params:
        if parameter.name in given:
            constants[parameter.name] = given[parameter.name]
        elif parameter.name not in passed:
            if parameter.has_default:
                constants[parameter.name] = parameter.default
            else:
                missing.append(parameter.name)
    stray = sorted(set(kernel["divisible"]) - passed)
    for what, names in (
        ("no argument and no constant for", missing),
        ("no parameter named", unknown),
        ("argument and constant at once:", both),
        ("divisible, but not an argument:", stray),
    ):
        if names:
            raise ValueError(f"kernel `{function.__name__}`: {what} {', '.join(names)}")
    return constants


def _value(value: Any) -> Any:
    """A constant as it came through JSON: lists were tuples, and "tl.float32" names a type of Triton's."""
    if isinstance(value, list):
        return tuple(_value(item) for item in value)
    if isinstance(value, str) and value.startswith("tl."):
        import triton.language as tl

        return getattr(tl, value.removeprefix("tl."))
    return value


def _inspected(cubin: bytes) -> dict[str, str]:
    """Machine code with source lines, and what cuobjdump says of resources. The tools are in Triton's wheel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        return {
            "usage": _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)),
            "sass": _run(knobs.nvidia.nvdisasm.path, "-c", "-g", str(file)),
        }


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{Path(tool).name} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def _portable(text: str) -> str:
    """Without the folders of this machine: line information names Triton's own files, errors name temporary ones."""
    folders = {*sys.path, sys.prefix, tempfile.gettempdir()} - {""}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder.rstrip(os.sep) + os.sep, "")
    return text


def _worded(error: BaseException) -> str:
    """The error and its causes; a compiler's first message is often only where, and its cause what."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = f"{type(cause).__name__}: {cause}".strip()
        if text not in lines:
            lines.append(text)
        cause = cause.__cause__ or cause.__context__
    return "\n".join(lines)


if __name__ == "__main__":
    main()
