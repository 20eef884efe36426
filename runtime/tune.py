"""`weft tune`: every choice that a spec's step leaves open, measured on a device.

A graph is walked node by node on random operands (graph_walk.py), and where a call is met for the first time its
candidates are timed on the operands that the graph gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.configuration import Configuration
from ..codegen.emit import KernelOp
from ..codegen.facts import facts
from ..codegen.gpu import tables
from ..codegen.gpu.attention import attend
from ..codegen.grouped.op import GroupedOp
from ..codegen.logits.op import LogitsOp
from ..codegen.lower import empty_weights, lower, signature
from ..codegen.passes.measured_choices import linear_key, plain_attentions
from ..codegen.pipeline import GPU_PASSES, optimise
from ..codegen.rowwise.fused import FusedOp
from ..codegen.score.load import connect
from ..codegen.subjects import (
    PRODUCTS,
    grouped_subject,
    linear_subject,
    logits_subject,
    plain_attention_subject,
    row_subject,
    table_subject,
)
from ..codegen.table_gradients import tables_added
from ..dsl.check import Checked
from ..dsl.program import Program
from . import tune_attention, tune_questions
from .graph_walk import Call, GraphWalk, meanings_of
from .kernels import attach_kernels
from .measured import choices_for, device_name, versions
from .sample_inputs import equal_examples
from .tune_questions import Question
from .tuning import DeviceLost, Key, Row, Table, tune

# How far results of candidates may lie apart, of the largest entry.
_SAME = 0.03
# Questions about one attention: four kernels of training, torch's instead, two of decoding.
_ATTENTION = 7
# Microseconds of one run.
Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class TuneOptions:
    """`rows` of a step in examples of `length`; `working` is the type of the computation; `budget` in seconds."""

    rows: int = 16384
    length: int = 4096
    working: torch.dtype = torch.bfloat16
    budget: float = 600.0


@dataclass(frozen=True)
class Answer:
    """What came of one question: the best configuration, its time and the default's, how many were tried or failed."""

    what: str
    place: str
    best: Row | None
    default: Configuration
    default_us: float | None
    tried: int
    failed: int
    reason: str = ""


def device_timer(device: torch.device) -> Timer:
    """The median of runs that find nothing of theirs in the cache."""
    from triton.testing import do_bench

    def timed(run: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            milliseconds: Any = do_bench(run, warmup=10, rep=50, return_mode="median")
            return 1000.0 * milliseconds

    return timed


def programs_of(checked: Checked) -> list[Program]:
    """Whose steps are measured: objectives, or the model of a spec without any."""
    return list(checked.objectives.values()) or [checked.model]


def tune_spec(
    checked: Checked,
    table: Table,
    device: torch.device,
    timer: Timer,
    options: TuneOptions,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Table, Answer]]:
    """The table after each question, and its answer. Weights are of the working type, as a compiled model has them,
    then float32, as training keeps them."""
    end = clock() + options.budget
    steps = [
        _Step(program, stored, device, options)
        for stored in dict.fromkeys((options.working, torch.float32))
        for program in programs_of(checked)
    ]
    expected = frozenset().union(*(step.expected for step in steps))
    known: set[str] = set()
    for step in steps:
        for place, question in step.questions():
            if question.subject in known:
                continue
            left = end - clock()
            if left <= 0:
                return
            share = left / max(1, len(expected) - len(known))
            known.add(question.subject)
            table, answer = _ask(question, place, table, device, timer, share, clock)
            # What was measured is used by what is measured next.
            connect(choices_for(table, device_name(device)))
            yield table, answer


def _ask(
    question: Question,
    place: str,
    table: Table,
    device: torch.device,
    timer: Timer,
    budget: float,
    clock: Callable[[], float],
) -> tuple[Table, Answer]:
    key = Key(question.subject, device_name(device), question.sizes)
    trials: dict[Configuration, float | None] = {}

    reference: list[Tensor] = []

    def run(chosen: Configuration) -> float:
        trials[chosen] = None
        try:
            prepared = question.prepare(chosen)
            made = _tensors(prepared())  # compiles; what does not fit fails here
            if chosen == question.candidates[0]:
                reference[:] = [x.clone() for x in made]
            elif reference:
                _check_same(made, reference)
            found = timer(prepared)
        except Exception:
            _check_alive(device, question.what)
            raise
        trials[chosen] = found
        return found

    table, _ = tune(table, key, question.candidates, run, budget, versions(), clock)
    failed = [chosen for chosen, found in trials.items() if found is None]
    reasons = {row.configuration: row.failure for row in table.rows if row.key == key and row.failure is not None}
    default = question.candidates[0]
    answer = Answer(
        question.what, place, table.fastest(key, versions()), default, trials.get(default), len(trials), len(failed),
        next((text for one in failed if (text := reasons.get(one))), ""),
    )  # fmt: skip
    return table, answer


def _tensors(made: object) -> list[Tensor]:
    results = made if isinstance(made, tuple | list) else (made,)
    return [x.detach() for x in results if isinstance(x, Tensor) and x.is_floating_point()]


def _check_same(made: list[Tensor], reference: list[Tensor]) -> None:
    """A candidate that computes something else is a failure, however fast. Sums in another order differ a little."""
    for one, two in zip(made, reference, strict=True):
        largest = two.abs().max().item() if two.numel() else 0.0
        off = (one.double() - two.double()).abs().max().item() if two.numel() else 0.0
        if not off <= _SAME * largest + 1e-30:
            raise ValueError(f"off by {off:.2g} from the default's result, whose largest entry is {largest:.2g}")


def _check_alive(device: torch.device, what: str) -> None:
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLost(f"{device} failed while {what} was measured: {str(error).splitlines()[0]}") from None


class _Step:
    """The graph of a program's step, and what is asked about its calls."""

    def __init__(self, program: Program, stored: torch.dtype, device: torch.device, options: TuneOptions) -> None:
        weights = empty_weights(program.weights, stored, "meta")
        module = optimise(lower(program, weights, options.working, stored), GPU_PASSES)
        self.ops = {node: node.target for node in module.graph.nodes if isinstance(node.target, KernelOp)}
        known = facts(module)
        self.linears = {node: key for node in module.graph.nodes if (key := linear_key(node, known)) is not None}
        self.plain = plain_attentions(module)
        self.tables = tables_added(module)
        meanings = meanings_of(module)
        attach_kernels(module)
        lengths = equal_examples(signature(module), options.rows, min(options.length, options.rows))
        self.walk = GraphWalk(module, lengths, device, options.working, meanings)
        self.seen: set[object] = set()

    @property
    def expected(self) -> frozenset[str]:
        """What will be asked about, as far as the graph says: for sharing the budget."""
        found = {table_subject(*table) for table in self.tables}
        for op in self.ops.values():
            if isinstance(op, LogitsOp):
                found.add(logits_subject(op))
            elif isinstance(op, GroupedOp):
                found |= {grouped_subject(op, product) for product in PRODUCTS}
            elif isinstance(op, FusedOp):
                found |= {row_subject(plan) for plan in (op.forward, op.backward) if plan is not None}
        found |= {linear_subject(key, product) for key in self.linears.values() for product in PRODUCTS}
        for key, high in set(self.plain.values()):
            found |= {f"{plain_attention_subject(key, high)} {number}" for number in range(_ATTENTION)}
        return frozenset(found)

    def questions(self) -> Iterator[tuple[str, Question]]:
        """With the spec line of each."""
        for call in self.walk.calls():
            about = self._about(call)
            while True:
                try:
                    with torch.no_grad():
                        question = next(about, None)
                except Exception:  # noqa: BLE001  a kernel that does not run in its default, which its row says
                    break
                if question is None:
                    break
                yield call.place, question

    def _about(self, call: Call) -> Iterator[Question]:
        node, args, kwargs = call.node, call.args, call.kwargs
        op = self.ops.get(node)
        if op is not None:
            if self._is_new(op.key):
                yield from self._of_kernel(op, node.target, args)
        elif node in self.linears:
            key = self.linears[node]
            if self._is_new(key):
                yield from tune_questions.of_linear(key, args[0], args[1], PRODUCTS)
        elif node.target is attend:
            plain, (low, high) = self.plain.get(node), (kwargs.get("low"), kwargs.get("high"))
            if self._is_new((low, high, plain, args[0].shape, args[1].shape)):
                yield from tune_attention.of_attention(args, kwargs)
                if plain is not None:
                    yield tune_attention.of_plain_attention(*plain, args, kwargs)
                    yield from tune_attention.of_decoding(plain[0], float(args[5]), low, int(high or 0), args[0])
        elif node.target in (tables.embedding, tables.read_rows):
            table, index = args if node.target is tables.read_rows else (args[1], args[0])
            if self._is_new((table.shape, table.dtype)):
                flat = table.reshape(table.shape[0], -1)
                yield tune_questions.of_table(index, torch.randn_like(flat[index]), table.shape[0])

    def _of_kernel(self, op: KernelOp, call: Any, args: Any) -> Iterator[Question]:
        if isinstance(op, LogitsOp):
            yield tune_questions.of_logits(op, args)
        elif isinstance(op, GroupedOp):
            yield from tune_questions.of_grouped(op, args)
        elif isinstance(op, FusedOp):
            yield from tune_questions.of_fused(op, call, args)

    def _is_new(self, key: object) -> bool:
        if key in self.seen:
            return False
        self.seen.add(key)
        return True
