"""Verify and time every generated kernel on this machine's GPU, beside torch and other libraries.

    python bench/gpu.py                                  everything; results go to bench/results/DEVICE.json
    python bench/gpu.py --only kernels --budget 500      one section, for so many seconds
    python bench/gpu.py --device cpu --tiny              the same code on a CPU, in Triton's interpreter
    python bench/gpu.py --page                           writes docs/kernels.md from the results files

Sections: verify (every kernel of every spec against float64), kernels (times at OLMo 2 7B and tiny sizes, and at BLT
1B), step (a training step and decoding of 1B parameters beside transformers). Each runs in a process of its own, and in
a new one where a kernel took the device down. What fails is a row that says so. A tuning.json beside the spec is used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECTIONS = ("verify", "kernels", "step")
PEER_NAMES = (
    "eager", "compile", "liger", "sdpa", "flex", "grouped_mm", "varlen", "cce", "torch", "fbgemm", "transformers",
)  # fmt: skip
USAGE = 2
# What a process ends with when its device is gone, and it has noted what took it down.
LOST = 3
# Seconds that a process may go on behind its budget.
PATIENCE = 180.0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="SECTIONS", help="some, with commas between")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes for a machine without a GPU")
    parser.add_argument("--budget", type=float, default=3600.0, metavar="SECONDS", help="time in all")
    parser.add_argument("--peers", default="all", metavar="NAMES", help="some, with commas between; none: ours alone")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--out", type=Path, help="results file [default: bench/results/DEVICE.json]")
    parser.add_argument("--page", action="store_true", help="only write docs/kernels.md from what is there")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # of a process that this script started
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parsed(arguments)
    wanted = given.only.split(",")
    unknown = sorted(set(wanted) - set(SECTIONS))
    if unknown:
        print(f"--only takes {', '.join(SECTIONS)}, not {', '.join(unknown)}", file=sys.stderr)
        return USAGE
    strange = sorted(set(given.peers.split(",")) - set(PEER_NAMES) - {"all", "none"})
    if strange:
        print(f"--peers takes {', '.join(PEER_NAMES)}, all or none, not {', '.join(strange)}", file=sys.stderr)
        return USAGE
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    if given.page:
        from bench.gpu_bench import page

        page.write()
        return 0

    import torch

    if given.device != "cpu" and not torch.cuda.is_available():
        print("there is no GPU here; --device cpu --tiny runs the same code in Triton's interpreter", file=sys.stderr)
        return 1
    if given.device == "cpu" and not given.tiny:
        print("a CPU needs --tiny: real sizes would take days in Triton's interpreter", file=sys.stderr)
        return USAGE
    if given.run:
        return section(given, wanted[0])
    return all_sections(given, wanted, arguments if arguments is not None else sys.argv[1:])


def all_sections(given: argparse.Namespace, wanted: list[str], arguments: list[str]) -> int:
    """Each in processes of its own; the time that is left is shared by those to come."""
    end = time.monotonic() + given.budget
    run, worst = uuid.uuid4().hex[:8], 0
    for number, name in enumerate(wanted):
        finish = time.monotonic() + (end - time.monotonic()) / (len(wanted) - number)
        code, goes_on = 1, True
        while code and goes_on and code != USAGE:
            left = max(1.0, finish - time.monotonic())
            command = [sys.executable, __file__, *arguments, "--only", name, "--run", run, "--budget", f"{left:.0f}"]
            try:
                # A process looks at its budget between rows only: a kernel is not interrupted.
                code = subprocess.run(command, timeout=left + PATIENCE, check=False).returncode
                why = f"the process ended with code {code}"
            except subprocess.TimeoutExpired:
                code, why = 1, "the process did not end in its time"
            # What it was at is a row too, and the rest goes on in another process, without it.
            goes_on = code == LOST or (bool(code) and code != USAGE and results_of(given, name, run).give_up(why))
            if goes_on:
                print(f"{name}: {why}; another one goes on", file=sys.stderr)
        worst = max(worst, abs(code))
    return worst


def results_of(given: argparse.Namespace, name: str, run: str):
    """The rows of a section of this run."""
    import torch

    from bench.gpu_bench.results import Results, device_title, file_name

    device = torch.device(given.device)
    out = given.out or ROOT / "bench" / "results" / file_name(device_title(device))
    options = {"tiny": given.tiny, "peers": given.peers, "backend": given.backend}
    return Results(out, name, run, device, options)


def section(given: argparse.Namespace, name: str) -> int:
    """One section in this process. LOST where another has to go on."""
    import torch

    from bench.gpu_bench.context import Context, DeviceLost

    device = torch.device(given.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        from weft.codegen.quick_interpreter import quicken

        quicken()
    names = {"all": PEER_NAMES, "none": ()}.get(given.peers, tuple(given.peers.split(",")))
    results = results_of(given, name, given.run)
    context = Context(
        device, given.tiny, time.monotonic() + given.budget, frozenset(names), given.backend, frozenset(results.done),
        results.begin,
    )  # fmt: skip
    results.write()
    try:
        for row in _rows(name)(context):
            if row["name"] not in results.done:
                results.add(row)
                print(f"{name}: {row['name']}{': ' + row['failure'] if row.get('failure') else ''}", flush=True)
    except DeviceLost as lost:
        print(f"{name}: the device failed: {lost}", file=sys.stderr)
        if lost.row is not None:
            results.add(lost.row)
            return LOST
        return LOST if results.give_up(f"the device failed: {lost}") else 1
    return 0


def _rows(name: str):
    if name == "verify":
        from bench.gpu_bench.verifying import rows
    elif name == "kernels":
        from bench.gpu_bench.kernels import rows
    else:
        from bench.gpu_bench.steps import rows
    return rows


if __name__ == "__main__":
    sys.exit(main())
