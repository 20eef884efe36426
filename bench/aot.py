"""Compile every generated kernel for every target, without a GPU, and fail on spills.

    python bench/aot.py [--targets cuda:90 hip:gfx942] [--size 7b] [--device h100] [--workers 2] [--cost] [--json OUT]
    python bench/aot.py --kernels tests.gpu_kernels:EXAMPLES      a list of KernelText of one's own
    python bench/aot.py --heads [80 160] [--dtypes bf16]          causal attention of heads this wide, or of all WIDTHS

Prints what each kernel takes, and ends with 1 when one does not compile, spills, or takes more shared memory than its
target has. Results are kept in build/kernels, so that a second run compiles what has changed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from weft import spec_files  # noqa: E402
from weft.codegen.gpu.attention_form import AttentionForm  # noqa: E402
from weft.codegen.score.kernels import KERNELS, kernel_text  # noqa: E402
from weft.codegen.score.plan import AttentionPlan  # noqa: E402
from weft.codegen.targets import TARGETS, UnknownTarget, device  # noqa: E402
from weft.dsl.check import presets_of  # noqa: E402
from weft.faults import CommandFault  # noqa: E402
from weft.runtime.ahead_of_time import problems  # noqa: E402
from weft.views import kernels, planned_kernels  # noqa: E402
from weft.views.kernels import Planned  # noqa: E402

# Of heads: one part and two (`codegen.score.plan.parts`), with and without a mask.
WIDTHS = (16, 24, 40, 64, 72, 80, 88, 96, 112, 128, 136, 144, 160, 176, 192, 224, 256)


def of_all_specs(targets: list[str], only: str | None, rows: int) -> list[Planned]:
    """Every kernel of every spec in specs/ for each target, at each of its sizes or at one, in default
    configurations."""
    found = []
    for path in sorted((ROOT / "specs").glob("*.weft")):
        source = spec_files.read(os.path.relpath(path))
        for size in presets_of(source):
            if only in (None, size):
                own = planned_kernels.of_spec(spec_files.checked_source(source, size, {}), targets, rows)
                found += [replace(one, spec=f"{path.stem} {size}: {one.spec}") for one in own]
                print(f"{path.stem} {size}: {len(own) // len(targets)} kernels", file=sys.stderr)
    return found


def of_a_list(name: str, targets: list[str]) -> list[Planned]:
    """`module:NAME`, a list of KernelText."""
    module, _, attribute = name.partition(":")
    texts = getattr(importlib.import_module(module), attribute)
    return [Planned(text, target, name, "forward") for text in texts for target in targets]


def of_heads(widths: list[int], dtypes: list[str], targets: list[str]) -> list[Planned]:
    """Attention without a formula in default configurations: each head with keys of its own, and the one kernel that
    loops over heads that share keys also with four of them."""
    found = []
    for dtype in dtypes:
        for width in widths:
            for heads in (8, 32):
                plan = AttentionPlan(AttentionForm(width**-0.5), dtype, heads, 8, width, width, None)
                for name in KERNELS if heads == 8 else ("attention_key_gradient",):
                    spec = f"{dtype}, {width} wide, {heads} heads"
                    direction = "forward" if name == "attention_forward" else "backward"
                    found += [Planned(kernel_text(plan, name, target), target, spec, direction) for target in targets]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--kernels", metavar="MODULE:NAME", help="instead of the kernels of all specs")
    parser.add_argument("--heads", nargs="*", type=int, metavar="WIDTH", help="instead: attention of heads this wide")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], metavar="DTYPE", help="of --heads")
    parser.add_argument("--size", help="one preset [default: all of them]")
    parser.add_argument("--rows", type=int, default=16384, help="rows of a step, for bytes and operations")
    parser.add_argument("--device", help="for rooflines [default: the usual one of each target]")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one kernel")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "kernels", help="where results are kept")
    parser.add_argument("--cost", action="store_true", help="also what kernels move and compute")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there")
    given = parser.parse_args()

    if given.kernels:
        planned = of_a_list(given.kernels, given.targets)
    elif given.heads is not None:
        planned = of_heads(given.heads or list(WIDTHS), given.dtypes, given.targets)
    else:
        planned = of_all_specs(given.targets, given.size, given.rows)
    if not planned:
        # Not a success: nothing was shown to be free of spills.
        print("no kernels to compile", file=sys.stderr)
        return 2
    start = time.perf_counter()
    try:
        shown_on = device(given.device) if given.device else None
        rows = kernels.compiled(planned, given.cache, given.timeout, given.workers)
    except (CommandFault, UnknownTarget) as error:
        print(error, file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    print(kernels.text(rows))
    if given.cost:
        print("\n" + kernels.cost(rows, shown_on))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(kernels.data(rows, shown_on), indent=2) + "\n", encoding="utf-8")
    wrong = [row for row in rows if problems(row.made)]
    print(f"\n{len(rows)} compilations in {seconds:.1f} s, {len(wrong)} with problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
