"""Bits per byte of a BLT and of a plain byte-level OLMo 2 after the same training FLOPs, on a CPU.

    python bench/blt_compare.py                      # as recorded in bench/results/cpu/blt_compare.json
    python bench/blt_compare.py --minutes 10         # as much as this machine trains of BLT in so many minutes
    python bench/blt_compare.py --smoke              # seconds; says nothing about models

What a user does, by the same entry points: `weft train` of the entropy model, `weft entropies` with the threshold for
4.5 bytes a patch, `weft train` of BLT on the stored entropies; and `weft train` of OLMo 2 tiny with the tokenizer
`bytes4`, whose vocabulary is BLT's.

What is equal: the documents (the standard library's source), the held-out ones among them (by a hash of their names,
for all three models), windows of 1,024 bytes read from their own start in training, for entropies and in evaluation,
bytes of a step, seed, schedule (cosine to a tenth, 2 % warm-up) and training FLOPs. These are the linears' and the
attention's of the reference graphs, over the pairs that masks allow, backward twice forward (bench/graph_flops.py). The
BLT side pays for its entropy model: its training, and its forward pass over all documents, once. What is left trains
BLT. "BLT alone" is the figure without.

Choices were made by runs of a fifth of the FLOPs. OLMo 2 is the spec's `tiny` as it stands; held-out bits per byte were
3.48 and 3.46 at peak rates of 3e-3 and 1.5e-3 with steps of 4,096 bytes, 3.35 and 3.33 with steps of 2,048; 8e-3 was
far behind. BLT got 2.30 at the first try, 3e-3, and was left there. It has two thirds of OLMo 2's FLOPs for a byte, two
fifths of them in a global model that is twice as wide as the local ones; those see 128 bytes. Hash tables have 8,191
rows, because 4.7 MB hold few n-grams. The entropy model trains for a fifteenth of the FLOPs, with 128 bytes of context.
The threshold comes from the entropies of all documents; nothing else of the held-out ones is seen before evaluation.

Tables are read, not multiplied: BLT has several times the weights for its FLOPs, as in the paper. What its bytes cost
besides products, optimiser steps over the tables among it, is in the seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu_bench.results import versions  # noqa: E402
from bench.graph_flops import Flops, flops_per_token  # noqa: E402
from weft.runtime.columns import read_column  # noqa: E402
from weft.runtime.data import DataOptions, encode_documents, load_corpus  # noqa: E402
from weft.runtime.events import Evaluated, Event, RunStarted, StepDone  # noqa: E402
from weft.runtime.loader import BatchPlan, TokenLoader  # noqa: E402
from weft.runtime.model import Model, load  # noqa: E402
from weft.runtime.run_config import make_config  # noqa: E402
from weft.runtime.tokens import load_tokens  # noqa: E402
from weft.runtime.train import train  # noqa: E402

RESULT = ROOT / "bench" / "results" / "cpu" / "blt_compare.json"
TOKENIZER, VOCABULARY = "bytes4", 260
PATCH = 4.5  # bytes of a patch, on average
SAMPLE = 64  # windows whose products are counted
MOST_EVALUATED = 1 << 30
WIDTH = 120


@dataclass(frozen=True)
class ModelChoice:
    """A spec with sizes, and its peak learning rate."""

    spec: str
    sizes: Mapping[str, int]
    lr: float


@dataclass(frozen=True)
class Setup:
    """What a comparison is made of. `entropy_share`: of the FLOPs of a side that train the entropy model."""

    flops: float
    entropy: ModelChoice
    blt: ModelChoice
    plain: ModelChoice
    entropy_share: float
    max_length: int
    bytes_per_step: int
    documents: int | None = None  # so many files alone
    seed: int = 0


RECORDED = Setup(
    flops=2e13,
    entropy=ModelChoice("entropy_lm", {"reach": 128}, 6e-3),
    blt=ModelChoice(
        "blt",
        {
            "local": 96, "local_heads": 4, "local_ffn": 256, "dim": 192, "heads": 4, "ffn": 512, "layers": 4,
            "decoder_layers": 2, "buckets": 8191, "reach": 128, "patcher_reach": 128,
        },
        3e-3,
    ),
    plain=ModelChoice("olmo2", {}, 1.5e-3),
    entropy_share=1 / 15,
    max_length=1024,
    bytes_per_step=2048,
)  # fmt: skip
SMOKE = replace(
    RECORDED,
    flops=2e10,
    blt=replace(RECORDED.blt, sizes={"buckets": 101, "reach": 32, "patcher_reach": 32}),
    entropy=replace(RECORDED.entropy, sizes={"reach": 32}),
    max_length=128,
    bytes_per_step=512,
    documents=3,
)


@dataclass(frozen=True)
class Trained:
    """A model after its run. `flops` are of training; `curve`: bytes seen, FLOPs and held-out bits per byte."""

    name: str
    spec: str
    parameters: int
    trained: int
    flops: float
    flops_per_byte: float
    attention_share: float
    steps: int
    bytes_seen: int
    seconds: float
    processor_seconds: float
    lr: float
    bits_per_byte: float
    held_out_bytes: int
    curve: tuple[tuple[int, float, float], ...]
    patch_bytes: float | None = None


@dataclass(frozen=True)
class Compared:
    """`inference_flops`: of the entropy model's pass over all documents."""

    entropy: Trained
    blt: Trained
    plain: Trained
    inference_flops: float
    inference_seconds: float
    inference_processor_seconds: float
    threshold: float
    calibrated_patch_bytes: float

    @property
    def blt_flops(self) -> float:
        """Of the whole side."""
        return self.entropy.flops + self.inference_flops + self.blt.flops


@dataclass(eq=False)
class _Seen:
    """What a run told."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    bytes_seen: int = 0
    trained: int = 0
    parameters: int = 0
    rows: int = 0
    segments: int = 0
    evaluations: list[tuple[int, Evaluated]] = field(default_factory=list)
    last: tuple[float, float] = (0.0, 0.0)


class Comparison:
    """Runs of a setup in a folder. `advance(name, share)` is told how much of what is done."""

    def __init__(self, setup: Setup, folder: Path, advance: Callable[[str, float], None], threads: int | None) -> None:
        self.setup, self.folder, self.advance, self.threads = setup, folder, advance, threads
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self.data = tuple(str(file) for file in files[: setup.documents])
        options = DataOptions(self.data, max_length=setup.max_length, begin_mark=True)
        tokens = load_tokens(TOKENIZER, VOCABULARY, None)
        self.names, self.encoded, _ = encode_documents(options, tokens, VOCABULARY)
        self.corpus = load_corpus(options, tokens, VOCABULARY)
        self.total = sum(map(len, self.encoded))

    def run(self) -> Compared:
        setup = self.setup
        of_entropy = self.flops_of(setup.entropy, {})
        entropy = self.train("entropy model", setup.entropy, setup.entropy_share * setup.flops, of_entropy, {})
        begin, of_children = time.monotonic(), _of_children()
        found = self.entropies()
        taken = time.monotonic() - begin, _of_children() - of_children
        inference = of_entropy.forward * self.total
        more: dict[str, Any] = {
            "columns": {"surprise": str(self.column)},
            "weights": {"entropy_lm": str(self.folder / setup.entropy.spec)},
        }
        threshold = found["threshold"]
        blt = replace(setup.blt, sizes={**setup.blt.sizes, "threshold": threshold})
        of_blt = self.flops_of(blt, {"surprise": self.column})
        trained = self.train("BLT alone", blt, setup.flops - entropy.flops - inference, of_blt, more)
        plain = self.train("OLMo 2", setup.plain, setup.flops, self.flops_of(setup.plain, {}), {})
        if plain.held_out_bytes != trained.held_out_bytes:
            raise RuntimeError(f"held out: {trained.held_out_bytes} bytes of BLT, {plain.held_out_bytes} of OLMo 2")
        return Compared(entropy, trained, plain, inference, *taken, threshold, found["mean"])

    @property
    def column(self) -> Path:
        return self.folder / "entropies"

    def flops_of(self, choice: ModelChoice, columns: Mapping[str, Path]) -> Flops:
        """For a byte of windows from all over the documents."""
        model = load(ROOT / "specs" / f"{choice.spec}.weft", "tiny", choice.sizes)
        assert isinstance(model, Model)
        length = self.setup.max_length
        values = {name: read_column(path).aligned(self.names, self.encoded) for name, path in columns.items()}
        tokens = np.concatenate(self.encoded)
        begins: list[int] = []
        start = 0
        for ids in self.encoded:
            begins += range(start, start + len(ids), length)
            start += len(ids)
        stops = [*begins[1:], len(tokens)]
        taken = [slice(begins[i], stops[i]) for i in range(0, len(begins), max(1, len(begins) // SAMPLE))]
        given = {name: [column[part] for part in taken] for name, column in values.items()}
        return flops_per_token(model, [tokens[part] for part in taken], given)

    def train(self, name: str, choice: ModelChoice, flops: float, each: Flops, more: dict[str, Any]) -> Trained:
        """As many steps as come nearest to the FLOPs."""
        setup = self.setup
        steps = self.steps_for(flops / each.training)
        config = make_config(
            {
                "spec": str(ROOT / "specs" / f"{choice.spec}.weft"), "size": "tiny", "overrides": dict(choice.sizes),
                "data": self.data, "tokenizer": TOKENIZER, "begin_mark": True, "max_length": setup.max_length,
                "tokens_per_step": setup.bytes_per_step, "steps": steps, "lr": choice.lr, "seed": setup.seed,
                "eval_every": max(1, -(-steps // 4)), "eval_tokens": MOST_EVALUATED, "save_every": steps, "keep": 1,
                "threads": self.threads, "device": "cpu", "tensorboard": "off", "out": str(self.folder / choice.spec),
            },
            more,
        )  # fmt: skip
        seen = _Seen(last=_clocks())
        train(config, lambda event: self.hear(name, seen, event))
        curve = tuple((read, read * each.training, one.bits_per_byte or 0.0) for read, one in seen.evaluations)
        last = seen.evaluations[-1][1]
        assert last.bits_per_byte is not None
        return Trained(
            name, choice.spec, seen.parameters, seen.trained, seen.bytes_seen * each.training, each.training,
            each.attention / each.forward, steps, seen.bytes_seen, seen.seconds, seen.processor_seconds, choice.lr,
            last.bits_per_byte, last.tokens, curve, seen.rows / seen.segments if seen.segments else None,
        )  # fmt: skip

    def steps_for(self, tokens: float) -> int:
        """The steps after which a run has read the nearest to so many bytes: windows fill a step until the next one
        does not fit, so that steps differ."""
        loader = TokenLoader(self.corpus, BatchPlan(self.setup.bytes_per_step, None, self.setup.seed))
        steps, before, read = 0, 0, 0
        while read < tokens:
            steps, before, read = steps + 1, read, read + loader.next_batch().rows
        return max(1, steps - (tokens - before < read - tokens))

    def hear(self, name: str, seen: _Seen, event: Event) -> None:
        now = _clocks()
        match event:
            case RunStarted():
                seen.parameters, seen.trained = event.parameters, event.trained
            case StepDone():
                # Evaluation and saving come after the event: their time is not counted.
                seen.seconds += now[0] - seen.last[0]
                seen.processor_seconds += now[1] - seen.last[1]
                seen.bytes_seen = event.tokens
                seen.rows += sum(cut.rows for cut in event.cuts.values())
                seen.segments += sum(cut.segments for cut in event.cuts.values())
                self.advance(name, event.step / event.steps)
            case Evaluated():
                seen.evaluations.append((seen.bytes_seen, event))
        seen.last = _clocks()

    def entropies(self) -> dict[str, Any]:
        command = [
            sys.executable, "-m", "weft", "entropies", str(self.folder / self.setup.entropy.spec), "--data", *self.data,
            "--out", str(self.column), "--patch-bytes", str(PATCH), "--max-length", str(self.setup.max_length),
            "--device", "cpu", "--json", *(["--threads", str(self.threads)] if self.threads else []),
        ]  # fmt: skip
        self.advance("weft entropies", 0.0)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"weft entropies failed: {done.stderr[-2000:]}")
        self.advance("weft entropies", 1.0)
        return json.loads(done.stdout)["calibration"]


def _clocks() -> tuple[float, float]:
    """By the wall, and of all threads: what others do on the machine changes the first alone."""
    return time.monotonic(), time.process_time()


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def flops_in(minutes: float, setup: Setup, threads: int | None) -> float:
    """What BLT trains in so many minutes here, by a few steps of it with patches of four bytes."""
    steps = 8
    sizes = {**setup.blt.sizes, "rule": "static"}
    with tempfile.TemporaryDirectory() as folder:
        probe = Comparison(setup, Path(folder), lambda name, share: None, threads)
        choice = replace(setup.blt, sizes=sizes)
        each = probe.flops_of(choice, {})
        trained = probe.train("probe", choice, steps * setup.bytes_per_step * each.training, each, {})
    return trained.flops / trained.seconds * minutes * 60


# -- what is shown and kept --------------------------------------------------------------------------------------------


def shown(made: Compared) -> Table:
    table = Table(
        "", "weights", "of them trained", "training FLOPs", "a byte", "bytes seen", "processor s", "bits/byte"
    )
    inference = f"{made.inference_flops:.3g}"
    for one in (made.entropy, made.blt, made.plain):
        table.add_row(
            one.name, f"{one.parameters:,}", f"{one.trained:,}", f"{one.flops:.4g}", f"{one.flops_per_byte:.3g}",
            f"{one.bytes_seen:,}", f"{one.processor_seconds:.0f}", f"{one.bits_per_byte:.4f}",
        )  # fmt: skip
        if one is made.entropy:
            table.add_row("its entropies", "", "", inference, "", "", f"{made.inference_processor_seconds:.0f}", "")
    seconds = made.entropy.processor_seconds + made.inference_processor_seconds + made.blt.processor_seconds
    table.add_row(
        "BLT in all", "", "", f"{made.blt_flops:.4g}", "", "", f"{seconds:.0f}", f"{made.blt.bits_per_byte:.4f}"
    )
    return table


def record(made: Compared, setup: Setup, documents: int, total: int, threads: int) -> dict[str, Any]:
    """No name of a machine or a place on it."""
    wanted = ("python", "torch")
    blt, plain = made.blt.bits_per_byte, made.plain.bits_per_byte
    return {
        "format": "weft-blt-compare 1",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: version for name, version in versions().items() if name in wanted},
        "threads": threads,
        "data": {"what": "*.py of Python's standard library", "documents": documents, "bytes_with_marks": total},
        "setup": asdict(setup),
        "flops": {"BLT in all": made.blt_flops, "BLT alone": made.blt.flops, "OLMo 2": made.plain.flops},
        "entropies": {
            "flops": made.inference_flops, "seconds": made.inference_seconds,
            "processor_seconds": made.inference_processor_seconds, "threshold": made.threshold,
            "patch_bytes": made.calibrated_patch_bytes,
        },
        "models": [asdict(one) for one in (made.entropy, made.blt, made.plain)],
        "bits_per_byte": {"BLT": blt, "OLMo 2": plain, "OLMo 2 less BLT": plain - blt},
    }  # fmt: skip


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--flops", type=float, help=f"training FLOPs of either side [default: {RECORDED.flops:g}]")
    budget.add_argument("--minutes", type=float, help="as many as BLT trains in this time here")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and steps")
    parser.add_argument("--threads", type=int, help="of torch [default: its own]")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("blt", "plain", "entropy"):
        parser.add_argument(f"--{name}-lr", type=float, metavar="RATE", help="peak learning rate")
    parser.add_argument("--out", type=Path, help="results file [default: the recorded one; with --smoke: none]")
    return parser.parse_args(arguments)


def chosen(given: argparse.Namespace) -> Setup:
    setup = replace(SMOKE if given.smoke else RECORDED, seed=given.seed)
    for name in ("blt", "plain", "entropy"):
        rate = getattr(given, f"{name}_lr")
        if rate is not None:
            setup = replace(setup, **{name: replace(getattr(setup, name), lr=rate)})
    if given.minutes is not None:
        return replace(setup, flops=flops_in(given.minutes, setup, given.threads))
    return setup if given.flops is None else replace(setup, flops=given.flops)


def main(arguments: list[str] | None = None) -> int:
    given = parsed(arguments)
    setup = chosen(given)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:15}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def advance(name: str, share: float) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=1.0)
            bar.update(tasks[name], completed=share)

        comparison = Comparison(setup, Path(folder), advance, given.threads)
        made = comparison.run()
    Console(width=WIDTH).print(shown(made))
    out = given.out or (None if given.smoke else RESULT)
    if out is not None:
        threads = given.threads or torch.get_num_threads()
        found = record(made, setup, len(comparison.names), comparison.total, threads)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
