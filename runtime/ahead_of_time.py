"""Compile kernels for GPUs that are not here, and read what they would take.

    for made in compile_ahead(kernels, ["cuda:90", "hip:gfx942"], cache=folder):
        print(made.kernel, made.target, made.resources or made.error)

Each target has its own processes (`kernel_worker`): a compiler can end the process it runs in, and then only the kernel
that did it is lost. Results are kept on disk under a hash of everything they depend on. Nothing here imports Triton.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..codegen.kernel_text import KernelText
from ..codegen.targets import Target
from ..codegen.targets import target as target_named
from . import resources
from .errors import RuntimeFault
from .resources import Resources

# Goes into the keys of the cache: raise it when what is kept, or how it is read, changes.
_FORMAT = 1
TIMEOUT = 120.0
# Starting is importing Triton: a fraction of a second, on a machine that is not overloaded.
_START = 60.0


class AheadFault(RuntimeFault):
    """Nothing can be compiled at all: Triton is missing or does not start."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for a target: what it takes and its code, or why there is none.

    seconds    of the compilation, also when it is read from the cache
    assembly   PTX, or amdgcn assembly; "" after an error
    sass       NVIDIA machine code with source lines; "" on AMD, whose assembly is one to one
    error      what the compiler said, or how it ended; None when it compiled
    """

    kernel: str
    target: str
    triton: str
    seconds: float
    resources: Resources | None = None
    assembly: str = ""
    sass: str = ""
    error: str | None = None


def compile_ahead(
    kernels: Sequence[KernelText],
    targets: Sequence[str],
    cache: Path | None = None,
    timeout: float = TIMEOUT,
    workers: int = 1,
) -> list[Compiled]:
    """Each kernel for each target: the first kernel's targets, then the second's. As `compile_each` otherwise."""
    return compile_each([(kernel, name) for kernel in kernels for name in targets], cache, timeout, workers)


def compile_each(
    pairs: Sequence[tuple[KernelText, str]],
    cache: Path | None = None,
    timeout: float = TIMEOUT,
    workers: int = 1,
) -> list[Compiled]:
    """Kernels, each for the target beside it, in the order given; equal pairs are compiled once.

    A kernel that does not compile, takes longer than `timeout` seconds or ends the compiler is a Compiled with an
    error, and does not disturb the others. `workers` processes compile at a time. Results are looked up and kept in
    the folder `cache`, where one is given; what ended the compiler or took too long is tried again next time.

    A kernel is compiled as the launcher would: so an integer that is 1 at run time, which the launcher makes a
    constant, is another kernel; a constant such as "tl.float32" is a type of Triton's; on AMD every tensor is taken to
    be within 2 GiB. The cache knows a kernel by its text: what the text imports from elsewhere must not change.

    UnknownTarget for a target that is not in the table, AheadFault when Triton is missing.
    """
    targets = {name: target_named(name) for _, name in pairs}
    version = triton_version()
    keys = [key(kernel, name, version) for kernel, name in pairs]
    found: dict[str, Compiled] = {}
    missing: dict[str, dict[str, KernelText]] = {name: {} for name in targets}
    for its_key, (kernel, name) in zip(keys, pairs, strict=True):
        kept = None if cache is None else _read(cache, its_key)
        if kept is None:
            missing[name][its_key] = kernel
        else:
            found[its_key] = kept
    shares: list[_Share] = []
    for name, own in missing.items():
        # As many shares of a target as leave no worker idle, each with every n-th kernel: neighbours are alike.
        parts = min(len(own), -(-workers // len(targets)))
        shares += [_Share(targets[name], dict(list(own.items())[start::parts])) for start in range(parts)]
    stop = threading.Event()

    def work(share: _Share) -> dict[str, Compiled]:
        made = {}
        for its_key, compiled, lasting in _compile(share, version, timeout, stop):
            made[its_key] = compiled
            if cache is not None and lasting:
                _keep(cache, its_key, compiled)
        return made

    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for made in pool.map(work, shares):
                found |= made
        finally:
            stop.set()
    return [found[its_key] for its_key in keys]


def problems(made: Compiled) -> list[str]:
    """Why a kernel must not be used as it is: it did not compile, spills, or takes more memory than a program has."""
    taken = made.resources
    if taken is None:
        return [f"does not compile: {(made.error or '').strip().splitlines()[-1]}"]
    found = []
    if taken.spills:
        scalar = f", {taken.scalar_spills} scalar registers" if taken.scalar_spills else ""
        found.append(f"spills {taken.spill_stores} bytes per thread, reads back {taken.spill_loads}{scalar}")
    limit = target_named(made.target).shared
    if taken.shared > limit:
        found.append(f"takes {taken.shared:,} bytes of shared memory of {limit:,}")
    return found


def triton_version() -> str:
    """Of the installed Triton, which is not imported. AheadFault when there is none."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise AheadFault("compiling kernels needs triton: pip install 'weft[gpu]'") from None


def key(kernel: KernelText, target: str, version: str) -> str:
    """Everything that a compiled kernel depends on, as a hash."""
    described = {name: value for name, value in asdict(kernel).items() if value is not None}
    parts = json.dumps([_FORMAT, version, target, described], sort_keys=True, default=repr)
    return hashlib.sha256(parts.encode()).hexdigest()


# ---- the cache ---------------------------------------------------------------------------------


def _read(cache: Path, its_key: str) -> Compiled | None:
    """What is kept there; None when there is nothing that can be read."""
    try:
        data = json.loads((cache / f"{its_key}.json").read_text(encoding="utf-8"))
        if data["resources"] is not None:
            data["resources"]["matrix"] = tuple((name, count) for name, count in data["resources"]["matrix"])
            data["resources"] = Resources(**data["resources"])
        return Compiled(**data)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(cache: Path, its_key: str, compiled: Compiled) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    # Another process may read or write the same entry: a file appears whole or not at all.
    handle, temporary = tempfile.mkstemp(dir=cache, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(compiled), file)
        os.replace(temporary, cache / f"{its_key}.json")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---- the workers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """What one process compiles: kernels by their keys, all for one target."""

    target: Target
    kernels: dict[str, KernelText]


class _Worker:
    """One process that compiles; it ends with the `with` block, whatever it was doing."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __enter__(self) -> _Worker:
        # Whatever a compiler that was ended leaves behind is in there.
        self.folder = tempfile.mkdtemp(prefix="weft-kernels-")
        self.log = Path(self.folder) / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.kernel_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(self.folder),
                cwd=self.folder,
                start_new_session=True,  # so that it can be ended with the tools it has started
            )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a job that it has not read
                    pipe.close()
        _remove(self.folder)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):  # closed meanwhile
            for line in self.process.stdout:
                self.lines.put(line)
        self.lines.put(None)

    def send(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the answer says how
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next line, or an error with "ended": how the process ended, or that it took too long."""
        waited = 0.0
        while waited < timeout:
            try:
                line = self.lines.get(timeout=min(0.5, timeout - waited))
            except queue.Empty:
                waited += 0.5
                if self.stop.is_set():
                    return {"error": "stopped", "ended": True, "lasting": False}
                continue
            return json.loads(line) if line is not None else {"error": self._ending(), "ended": True, "lasting": False}
        return {"error": f"not compiled within {timeout:g} s", "ended": True, "lasting": False}

    def _ending(self) -> str:
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join([f"the compiler's process ended {how}", *_telling(said)])


def _remove(folder: str) -> None:
    """The folder of a process that was ended; tools it had started may need a moment to end, and write meanwhile."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.02)


def _telling(lines: Sequence[str]) -> list[str]:
    """The lines of a crash that say what happened; a stack dump and whole modules follow them."""
    marked = [line for line in lines if "LLVM ERROR" in line or "error:" in line or "Assertion" in line]
    return (marked or list(lines))[-10:]


def _environment(folder: str) -> dict[str, str]:
    """Ours without what changes how Triton compiles, with its caches in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "MLIR_", "LLVM_"))}
    return kept | {
        "TRITON_CACHE_DIR": str(Path(folder) / "cache"),
        # Read from a cache, a kernel brings no log of the assembler.
        "TRITON_ALWAYS_COMPILE": "1",
        "TRITON_DUMP_PTXAS_LOG": "1",
        "TMPDIR": folder,
        # The modules that this process sees, wherever it was started.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
    }


def _compile(
    share: _Share, version: str, timeout: float, stop: threading.Event
) -> Iterator[tuple[str, Compiled, bool]]:
    """Key, compiled kernel, and whether the result would be the same again."""
    target = share.target
    waiting = list(share.kernels.items())
    while waiting and not stop.is_set():
        with _Worker(stop) as worker:
            started = worker.answer(_START)
            if "triton" not in started:
                raise AheadFault(f"triton {version} does not start: {started['error'].splitlines()[-1]}")
            while waiting:
                its_key, kernel = waiting.pop(0)
                start = time.monotonic()
                worker.send({"kernel": asdict(kernel), "target": [target.backend, target.arch, target.warp_size]})
                answer = {"lasting": True} | worker.answer(timeout)
                if answer.get("ended"):
                    answer["seconds"] = time.monotonic() - start
                yield its_key, _compiled(kernel, target, version, answer), answer["lasting"]
                if answer.get("ended"):
                    break  # the next kernel gets a new process


def _compiled(kernel: KernelText, target: Target, version: str, answer: dict[str, Any]) -> Compiled:
    blank = Compiled(kernel.name, target.name, version, round(answer["seconds"], 3))
    if "error" in answer:
        return replace(blank, error=answer["error"])
    if target.backend == "hip":
        taken, sass = resources.amd(answer["assembly"], answer["metadata"]), ""
    else:
        sass = answer["sass"]
        taken = resources.nvidia(answer["usage"], answer["log"], sass, answer["metadata"])
    return replace(blank, resources=taken, assembly=_code_only(answer["assembly"]), sass=sass)


def _code_only(assembly: str) -> str:
    """Without the sections for debuggers: bytes that say nothing to a reader, after the code."""
    lines = []
    skipping = False
    for line in assembly.splitlines():
        if line.startswith("\t.section"):
            skipping = ".debug" in line
        elif skipping and line.startswith("\t.amdgpu_metadata"):
            skipping = False
        if not skipping:
            lines.append(line)
    return "\n".join(lines) + "\n"
