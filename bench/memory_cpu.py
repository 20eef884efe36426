"""A memory layer on a CPU against the ways to write one in plain torch.

    python bench/memory_cpu.py                 # everything
    python bench/memory_cpu.py --only train    # train, lookup or memory
    python bench/memory_cpu.py --half 256      # a smaller table (256 x 256)

512 tokens of width 512, 4 heads x 32 entries, 1,024 keys per half of width 256, a million values of 512, fp32: the
shape of memory_layers.md's CPU measurements. The layer is query projection, product keys, softmax and weighted sum.

    train    forward, backward and the update of the table; every side draws new tokens each step, so that rows are
             read again only after a while, as in training
             ours       rows updated when they are read, to the numbers of dense AdamW
             by row     the same with one moment for each row and no first ones (moments=row), another optimiser too
             dense      torch's autograd with a gradient as large as the table, fused AdamW
             sparse     embedding_bag(sparse=True) and SparseAdam, which is another optimiser
             products   the matrix products alone that each of these makes, of queries and of half scores
    lookup   forward alone: all half scores, topk, 1,024 sums, topk, embedding_bag against ours
             common     what both make: the products, and embedding_bag of the rows that were found
    memory   what a training step needs above weights and moments, each side in a process of its own

Sides take turns within one process, at most three of them with a table, so that 24 GiB are enough; a row gives medians
and ratios of times to ours, and to ours by row (above 1: we are faster). No way to compute the layer is faster than
`products` and `common`.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.process_memory import high_water  # noqa: E402
from weft.codegen.functions import row_tables  # noqa: E402
from weft.codegen.ops import OPS  # noqa: E402
from weft.dsl.check import check  # noqa: E402
from weft.dsl.source import Source  # noqa: E402
from weft.runtime.lazy_rows import LazyRows  # noqa: E402
from weft.runtime.model import Model  # noqa: E402
from weft.runtime.row_moments import RowMoments  # noqa: E402
from weft.runtime.rows_behind import RowSettings  # noqa: E402

TOKENS, WIDTH, HEADS, TOP, KEY = 512, 512, 4, 32, 512
RATE, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1

LAYER = """
size half = {half}
size dim = {width}
size width = {width}
size lookups = {heads}
size top = {top}
size key = {key}
size half_key = key / 2
axis seq
axis side = 2
axis slot = half * half
shared values: real[slot, width] = normal(width^-0.5)

model layer(x: real[seq, dim]) -> real[seq, width]:
    param keys: real[lookups, side, half, half_key] = uniform(-key^-0.5, key^-0.5)
    q = linear(x, dim -> (lookups, side, half_key), bias=true) as query
    sides = precise(dot(q, keys, over=half_key))
    found = topk_pairs(sides, over=half, pair=side, k=top, into=slot)
    weight = precise(softmax(found.score, over=top))
    return bag(values, found.index, weight=weight, over=(lookups, top))

init **.query.weight = uniform(-(6 / (fan_in + fan_out))^0.5, (6 / (fan_in + fan_out))^0.5)
"""


def weights(half: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The layer's, the same for every side."""
    return {path: weight.detach() for path, weight in layer(half, dtype).by_path()}


def layer(half: int, dtype: torch.dtype) -> Model:
    text = LAYER.format(half=half, width=WIDTH, heads=HEADS, top=TOP, key=KEY)
    return Model(check(Source("layer.weft", text.lstrip()), OPS).value(), dtype)


@dataclass
class Step:
    """Rows in, and the gradient of what comes out."""

    x: Tensor
    gradient: Tensor


def steps(seed: int) -> Callable[[], Step]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Step:
        return Step(*torch.randn(2, TOKENS, WIDTH, generator=generator))

    return draw


class Ours:
    def __init__(self, half: int, dtype: torch.dtype = torch.float32, by_row: bool = False) -> None:
        self.model = layer(half, dtype)
        self.table = dict(self.model.by_path())["values"]
        self.rows = (RowMoments if by_row else LazyRows)(self.table, RowSettings(BETAS, EPS, DECAY))
        setattr(self.table, row_tables.ATTRIBUTE, self.rows)
        self.offsets = torch.tensor([0, TOKENS], dtype=torch.int32)

    def lookup(self, x: Tensor) -> Tensor:
        return self.model((x, self.offsets)).values

    def train(self, step: Step) -> None:
        self.lookup(step.x).backward(step.gradient)
        self.rows.step(RATE)
        for _, weight in self.model.by_path():
            weight.grad = None


class Plain:
    """In torch, as most would write it."""

    def __init__(self, half: int, sparse: bool, dtype: torch.dtype = torch.float32) -> None:
        self.half, self.sparse = half, sparse
        start = weights(half, dtype)
        self.table = start["values"].requires_grad_()
        self.keys = start["keys"].reshape(HEADS * 2, half, KEY // 2).requires_grad_()
        self.query = start["query.weight"].reshape(HEADS * KEY, WIDTH).requires_grad_()
        self.bias = start["query.bias"].reshape(-1).requires_grad_()
        if sparse:
            self.optimizer: torch.optim.Optimizer = torch.optim.SparseAdam([self.table], lr=RATE, betas=BETAS, eps=EPS)
        else:
            self.optimizer = torch.optim.AdamW(
                [self.table], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True
            )

    def lookup(self, x: Tensor) -> Tensor:
        q = self.queries(x)
        sides = self.half_scores(q).view(HEADS, 2, len(x), self.half)
        score, place = sides.topk(TOP, -1)
        sums = (score[:, 0, :, :, None] + score[:, 1, :, None, :]).flatten(-2)
        slots = (place[:, 0, :, :, None] * self.half + place[:, 1, :, None, :]).flatten(-2)
        best, at = sums.topk(TOP, -1)
        index = slots.gather(-1, at).transpose(0, 1).flatten(1)
        weight = best.softmax(-1).transpose(0, 1).flatten(1)
        return functional.embedding_bag(index, self.table, mode="sum", per_sample_weights=weight, sparse=self.sparse)

    def queries(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.query, self.bias).view(len(x), HEADS * 2, KEY // 2)

    def half_scores(self, q: Tensor) -> Tensor:
        return torch.bmm(q.transpose(0, 1), self.keys.transpose(1, 2))

    def products(self, step: Step) -> None:
        """Of a training step: the gradient of half scores is a few numbers for each row, so no product."""
        with torch.no_grad():
            q = self.queries(step.x)
            self.half_scores(q)
            torch.mm(q.flatten(1).t(), step.x)

    def common(self, step: Step, index: Tensor, weight: Tensor) -> None:
        self.half_scores(self.queries(step.x))
        functional.embedding_bag(index, self.table, mode="sum", per_sample_weights=weight)

    def train(self, step: Step) -> None:
        self.optimizer.zero_grad()
        self.lookup(step.x).backward(step.gradient)
        self.optimizer.step()
        for weight in (self.keys, self.query, self.bias):
            weight.grad = None


SIDES: dict[str, Callable[[int], Ours | Plain]] = {
    "ours": Ours,
    "by row": lambda half: Ours(half, by_row=True),
    "dense": lambda half: Plain(half, sparse=False),
    "sparse": lambda half: Plain(half, sparse=True),
}


def check_equal(half: int, rounds: int) -> None:
    """A few steps of ours and dense from one start: the tables agree. In float64, where both select the same rows."""
    ours, dense, draw = Ours(half, torch.float64), Plain(half, False, torch.float64), steps(7)
    for _ in range(rounds):
        step = Step(*(x.double() for x in vars(draw()).values()))
        ours.train(step)
        dense.train(step)
    ours.rows.bring_up_all()
    apart = (ours.rows.table - dense.table.detach()).abs().max().item()
    print(f"after {rounds} steps the tables of ours and dense are {apart:.1e} apart at most (float64)")


def alternate(sides: Mapping[str, Callable[[Step], object]], draw: Callable[[], Step], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns, each with a step of its own."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, run in sides.items():
            step = draw()
            begin = time.perf_counter()
            run(step)
            if turn > 1:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def report(what: str, times: dict[str, float]) -> None:
    for name, seconds in times.items():
        ours = [times[one] for one in ("ours", "by row") if one in times]
        ratios = "" if name in ("ours", "by row") else "  ".join(f"{seconds / one:6.2f}x" for one in ours)
        print(f"{what:8} {name:8} {1e3 * seconds:9.1f} ms  {ratios}")


def compare_training(half: int, rounds: int, other: str) -> None:
    made = {name: SIDES[name](half) for name in ("ours", "by row", other)}
    sides: dict[str, Callable[[Step], object]] = {name: side.train for name, side in made.items()}
    plain = made[other]
    if isinstance(plain, Plain):
        sides["products"] = plain.products
    report("train", alternate(sides, steps(1), rounds))
    del sides, made, plain
    gc.collect()  # a table and the rows that its optimiser keeps know each other


def compare_lookup(half: int, rounds: int) -> None:
    ours, plain, draw = Ours(half), Plain(half, sparse=False), steps(2)
    delattr(ours.table, row_tables.ATTRIBUTE)  # no optimiser, as in inference: no rows to bring up to date
    with torch.no_grad():
        x = draw().x
        assert (ours.lookup(x) - plain.lookup(x)).abs().max() < 1e-5
        index = torch.randint(half * half, (TOKENS, HEADS * TOP))
        sides = {
            "ours": lambda step: ours.lookup(step.x),
            "plain": lambda step: plain.lookup(step.x),
            "common": lambda step: plain.common(step, index, torch.ones(index.shape)),
        }
        times = alternate(sides, draw, rounds)
    report("lookup", times)


def measure_memory(name: str, half: int) -> None:
    """Prints what steps need above what stays between them, in MiB."""
    side, draw = SIDES[name](half), steps(3)
    if isinstance(side, Ours):  # moments that nothing was written to take no memory
        side.rows.second.zero_()
        if isinstance(side.rows, LazyRows):
            side.rows.first.zero_()
    side.train(draw())
    if isinstance(side, Plain):
        side.table.grad = None

    def train() -> None:
        for _ in range(3):
            side.train(draw())

    print(high_water(train) / 2**20)


def compare_memory(half: int) -> None:
    needed = {}
    for name in SIDES:
        command = [sys.executable, __file__, "--measure", name, "--half", str(half)]
        needed[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, mib in needed.items():
        print(f"memory   {name:8} {mib:9.0f} MiB above weights and moments  {mib / needed['ours']:6.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("train", "lookup", "memory"))
    parser.add_argument("--half", type=int, default=1024, help="keys per half")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.measure:
        measure_memory(options.measure, options.half)
        return
    if options.only in (None, "train"):
        check_equal(min(options.half, 128), 20)
        compare_training(options.half, options.rounds, "dense")
        compare_training(options.half, options.rounds, "sparse")
    if options.only in (None, "lookup"):
        compare_lookup(options.half, options.rounds)
    if options.only in (None, "memory"):
        compare_memory(options.half)


if __name__ == "__main__":
    main()
