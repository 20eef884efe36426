"""What must hold for every random spec: it checks, keeps its meaning when it is formatted, and computes one thing
however it is run. And how a failing spec is made smaller.

    failure = failure_of(spec)                  None, or what went wrong
    text = smaller(spec.text, same_failure)     statements dropped as long as it goes wrong the same way
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx

from weft.codegen.artifact import compile_to
from weft.codegen.ops import OPS
from weft.codegen.passes.counted_rows import leave_out_uncounted_rows
from weft.codegen.pipeline import BASIC_PASSES, COUNTED_ROWS, CPU_PASSES, GPU_PASSES, optimise
from weft.dsl.check import Checked, check
from weft.dsl.diagnostics import Problems, SpecErrors
from weft.dsl.format import format_text
from weft.dsl.parser import parse, structure
from weft.dsl.program import Program, Value
from weft.dsl.render import render
from weft.dsl.source import Source
from weft.runtime.decoder import Decoder, DecodeState
from weft.runtime.errors import GenerateFault
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model

from . import op_samples
from .fused_models import calls, gradients
from .random_documents import PICTURE, between, inputs_of, lengths_of
from .random_specs import RandomSpec

LIMIT = 1e-8
# Numbers below this are zero that rounding has touched.
NOISE = 1e-11
DIGITS = 1e-13
# Rows of each example, chosen by the seed: empty ones first, in the middle and last, single rows, no rows at all.
SEQ = ((0, 5, 1, 0, 3), (1,), (4, 1), (0, 2, 0), (0, 0))
OTHER = ((2, 0, 1, 3, 1), (2,), (0, 3), (1, 0, 4), (0, 1))
# Linears of random specs are narrow.
COUNTED = replace(COUNTED_ROWS, function=partial(leave_out_uncounted_rows, least_outputs=1))


class Mismatch(Exception):
    """Two ways to run a spec that disagree; the text names the part."""


@dataclass(frozen=True)
class Failure:
    """`sort` is equal for failures of one kind, which a smaller spec must keep."""

    sort: str
    why: str


@dataclass
class Seen:
    """What a number of specs covered."""

    decoded: int = 0
    undecodable: dict[str, int] = field(default_factory=dict)
    kernels: int = 0


def failure_of(spec: RandomSpec, artifact: bool = False, seen: Seen | None = None) -> Failure | None:
    """Runs everything. Exceptions are failures as well."""
    try:
        run(spec, artifact, seen or Seen())
    except Mismatch as mismatch:
        part, *_, what = str(mismatch).split(":")
        return Failure(f"{part}, numbers" if " off by " in what else part, str(mismatch))
    except Exception as error:  # noqa: BLE001 - that none escapes is part of what is tested
        last = traceback.extract_tb(error.__traceback__)[-1]
        sort = f"{type(error).__name__} in {Path(last.filename).name} {last.name}"
        return Failure(sort, traceback.format_exc(limit=-6))
    return None


def run(spec: RandomSpec, artifact: bool, seen: Seen) -> None:
    source = Source("random.weft", spec.text)
    problems = check(source, OPS).problems.errors
    if problems:
        raise Mismatch(f"check {problems[0].describe().code}: {render(problems[0].describe(), color=False)}")
    _formatting(spec.text)
    checked = check(source, OPS).value()
    if not checked.weights:
        raise Mismatch("weights: there are none to take the type of the computation from")
    model = Model(checked, torch.float64, seed=spec.seed % 1000, passes=())
    which = spec.seed % len(SEQ)
    lengths = {"seq": SEQ[which], "other": OTHER[which]}
    if spec.documents:
        lengths = lengths_of(spec.documents, spec.spots)
    for program in (*checked.models.values(), *checked.objectives.values()):
        if spec.documents:
            values = inputs_of(program, spec.documents, spec.spots, seed=3)
        else:
            values = op_samples.inputs(program, lengths, seed=3)
        _program(model, program, lengths, values, seen)
    if spec.documents:
        _pictures_decoding(model, spec, seen)
    else:
        _decoding(model, spec, lengths, seen)
    if artifact:
        _artifact(checked)


def _formatting(text: str) -> None:
    once = format_text(Source("random.weft", text))
    if _tree(once) != _tree(text):
        raise Mismatch(f"format: another tree\n{once}")
    if format_text(Source("random.weft", once)) != once:
        raise Mismatch(f"format: not idempotent\n{once}")


def _tree(text: str) -> object:
    problems = Problems()
    file = parse(Source("random.weft", text), problems)
    if problems:
        raise Mismatch(f"parse: {problems.errors[0].describe().title}")
    return structure(file)


# -- one program -------------------------------------------------------------------------------------------------------


def _program(model: Model, program: Program, lengths: op_samples.Lengths, values: list[Tensor], seen: Seen) -> None:
    graph = model.reference(program)
    given = op_samples.arguments(graph, values, lengths)
    want = gradients(graph, given)
    for name, tensor in _named(want):
        if tensor is not None and not tensor.isfinite().all():
            raise Mismatch(f"finite: {program.name}: {name} is not finite")
    _one_by_one(program, graph, values, lengths, want[0])
    for passes, what in ((GPU_PASSES, "fused"), (CPU_PASSES, "cpu")):
        made = optimise(graph, tuple(COUNTED if one is COUNTED_ROWS else one for one in passes))
        attach_kernels(made)
        seen.kernels += calls(made)
        _compare(want, gradients(made, given), f"{what}: {program.name}")


def _named(found: tuple[list[Tensor], dict[str, Tensor | None]]) -> Iterator[tuple[str, Tensor | None]]:
    results, grads = found
    for number, result in enumerate(results):
        yield f"result {number}", result
    for name, gradient in grads.items():
        yield f"gradient of {name}", gradient


def _compare(want: tuple, got: tuple, what: str) -> None:
    # A gradient that is 0 is what is left of terms as large as other gradients are.
    reals = [tensor for _, tensor in _named(want) if tensor is not None and tensor.is_floating_point()]
    sizes = [tensor.abs().max().item() for tensor in reals if tensor.numel()]
    noise = NOISE + DIGITS * max(sizes, default=0.0)
    for (name, one), (_, two) in zip(_named(want), _named(got), strict=True):
        _same(two, one, f"{what}: {name}", noise)


def _same(got: Tensor | None, want: Tensor | None, what: str, noise: float = NOISE) -> None:
    if got is None or want is None:
        other = got if want is None else want
        if other is not None and (other.abs() > noise).any():
            raise Mismatch(f"{what}: one way has a gradient, the other none")
        return
    if got.shape != want.shape or got.dtype != want.dtype:
        raise Mismatch(f"{what}: {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}")
    if not want.numel():
        return
    if not want.is_floating_point():
        if not torch.equal(got, want):
            raise Mismatch(f"{what}: other whole numbers or flags")
        return
    off, size = (got - want).abs().max().item(), want.abs().max().item()
    if not off <= LIMIT * size + noise:
        raise Mismatch(f"{what}: off by {off:.3g} of {size:.3g}")


def _one_by_one(
    program: Program, graph: fx.GraphModule, values: list[Tensor], lengths: op_samples.Lengths, whole: list[Tensor]
) -> None:
    """Every example alone: its rows of each output, and losses that add up."""
    count = len(lengths["seq"])
    sums = [torch.zeros_like(result) for result in whole] if program.losses else []
    for number in range(count):
        alone = {axis: (counts[number],) for axis, counts in lengths.items()}
        given = op_samples.example(values, program, number, lengths)
        results = graph(*op_samples.arguments(graph, given, alone))
        if program.losses:
            sums = [total + result for total, result in zip(sums, results, strict=True)]
            continue
        # A graph gives offsets as well, of axes whose rows it makes.
        for (name, value), result, all_rows in zip(program.outputs, results, whole, strict=False):
            part = op_samples.part(all_rows, value.type, number, lengths)
            _same(result.detach(), part.detach(), f"one by one: {program.name}: {name} of example {number}")
    if program.losses:
        for number, (total, result) in enumerate(zip(sums, whole, strict=True)):
            _same(total.detach(), result.detach(), f"one by one: {program.name}: result {number}")


# -- decoding ----------------------------------------------------------------------------------------------------------


def _decoding(model: Model, spec: RandomSpec, lengths: op_samples.Lengths, seen: Seen) -> None:
    if not spec.is_causal:
        return
    try:
        decoder = Decoder(model)
    except GenerateFault as fault:
        what = str(fault).split(":")[0][:60]
        seen.undecodable[what] = seen.undecodable.get(what, 0) + 1
        return
    seen.decoded += 1
    program = model.program
    # Every sequence has rows, or there would be nothing to step along.
    counts = tuple(max(count, 1) for count in lengths["seq"])
    lengths = {**lengths, "seq": counts}
    graph = model.reference(program)
    values = op_samples.inputs(program, lengths, seed=4)
    whole = graph(*op_samples.arguments(graph, values, lengths))
    rows, once = {}, {}
    for value, tensor in zip(program.inputs, values, strict=True):
        if value.type.rows is not None:
            parts = list(tensor.split(lengths[value.type.rows.name]))
            (rows if value.type.rows.name == "seq" else once)[value.name] = parts
        else:
            once[value.name] = tensor
    starts = [sum(counts[:number]) for number in range(len(counts))]
    state = decoder.begin(len(counts), max(counts), once)
    for place in range(max(counts)):
        active = [place < count for count in counts]
        step = {name: torch.stack([part[min(place, len(part) - 1)] for part in parts]) for name, parts in rows.items()}
        results, state = decoder.step(state, step, active)
        outputs = list(results.values()) if isinstance(results, dict) else [results]
        for (name, _), result, full in zip(program.outputs, outputs, whole, strict=True):
            for number, on in enumerate(active):
                if on:
                    what = f"decode: {name}: row {place} of sequence {number}"
                    _same(result[number], full[starts[number] + place].detach(), what)


def _pictures_decoding(model: Model, spec: RandomSpec, seen: Seen) -> None:
    """Documents part by part, a word or a whole picture of each at a time, and cut short."""
    program, documents = model.program, spec.documents
    graph, lengths = model.reference(program), lengths_of(documents, spec.spots)
    values = inputs_of(program, documents, spec.spots, seed=4)
    whole = graph(*op_samples.arguments(graph, values, lengths))[: len(program.outputs)]
    if spec.is_causal:
        for turn in range(max(map(len, documents))):
            shorter = [document[:turn] for document in documents]
            spans = between(documents, [0] * len(documents), [turn] * len(documents), spec.spots)
            given = [_cut(value, tensor, lengths, spans) for value, tensor in zip(program.inputs, values, strict=True)]
            results = graph(*op_samples.arguments(graph, given, lengths_of(shorter, spec.spots)))
            for (name, value), result, full in zip(program.outputs, results, whole, strict=False):
                _same(result.detach(), _cut(value, full, lengths, spans).detach(), f"causal: {name}: {turn} parts")
    try:
        decoder = Decoder(model)
    except (GenerateFault, SpecErrors) as fault:
        if isinstance(fault, SpecErrors) and spec.is_causal:
            raise
        what = str(fault).split(":")[0][:60]
        seen.undecodable[what] = seen.undecodable.get(what, 0) + 1
        return
    seen.decoded += 1
    once = {
        value.name: list(tensor.split(lengths[value.type.rows.name])) if value.type.rows is not None else tensor
        for value, tensor in zip(program.inputs, values, strict=True)
        if value.name not in decoder.row_inputs
    }
    state = decoder.begin(len(documents), max(1, *lengths["seq"]), once)
    for turn in range(max(map(len, documents))):
        begins, ends = ([min(at, len(document)) for document in documents] for at in (turn, turn + 1))
        spans = between(documents, begins, ends, spec.spots)
        rows = {
            value.name: list(_cut(value, tensor, lengths, spans).split([b - a for a, b in spans[value.type.rows.name]]))
            for value, tensor in zip(program.inputs, values, strict=True)
            if value.type.rows is not None and value.name in decoder.row_inputs
        }
        words = all(document[turn : turn + 1] != PICTURE for document in documents)
        if words and turn % 2 and all(_along(value) != "place" for value in program.inputs):
            state = _word_step(decoder, state, rows, whole, lengths, spans)
            continue
        results, state = decoder.extend(state, rows)
        outputs = list(results.values()) if isinstance(results, dict) else [results]
        for (name, value), result, full in zip(program.outputs, outputs, whole, strict=True):
            _same(result, _cut(value, full, lengths, spans).detach(), f"decode: {name}: part {turn}")


def _word_step(
    decoder: Decoder,
    state: DecodeState,
    rows: Mapping[str, list[Tensor]],
    whole: list[Tensor],
    lengths: op_samples.Lengths,
    spans: Mapping[str, list[tuple[int, int]]],
) -> DecodeState:
    """A word of each document as a step. Those that have ended are given a row of zeros, which does not count."""
    program = decoder.program
    names = [value.name for value in program.inputs if value.name in rows and _along(value) != "picture"]
    step = {
        name: torch.stack([part[0] if len(part) else part.new_zeros(part.shape[1:]) for part in rows[name]])
        for name in names
    }
    active = [end > begin for begin, end in spans["seq"]]
    results, state = decoder.step(state, step, active)
    along = dict(decoder.graphs.plan.row_outputs)
    found = results if isinstance(results, dict) else dict(zip(along, [results] if along else [], strict=True))
    for (name, value), full in zip(program.outputs, whole, strict=True):
        if name in along and _along(value) in ("seq", "word"):
            want = _cut(value, full, lengths, spans).detach()
            _same(found[name][torch.tensor(active)], want, f"step: {name}")
    return state


def _along(value: Value) -> str | None:
    return value.type.rows.name if value.type.rows is not None else None


def _cut(
    value: Value, packed: Tensor, lengths: op_samples.Lengths, spans: Mapping[str, list[tuple[int, int]]]
) -> Tensor:
    """Of a packed value, so many rows of each example; all of what has none."""
    if value.type.rows is None:
        return packed
    axis = value.type.rows.name
    parts = packed.split(lengths[axis])
    return torch.cat([part[begin:end] for part, (begin, end) in zip(parts, spans[axis], strict=True)])


def _artifact(checked: Checked) -> None:
    with TemporaryDirectory() as folder:
        written = [compile_to(checked, Path(folder) / name, torch.float32, BASIC_PASSES) for name in ("one", "two")]
        one, two = (
            {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
            for root in written
        )
        if one != two:
            raise Mismatch(f"artifact: {next(name for name in one if one[name] != two.get(name))} differs")


# -- making it smaller -------------------------------------------------------------------------------------------------


def smaller(
    spec: RandomSpec, failure: Failure, fails: Callable[[RandomSpec], Failure | None] = failure_of
) -> RandomSpec:
    """The spec with lines dropped, outputs dropped and expressions replaced by their parts, as long as the failure
    stays of its sort."""
    checks = failure.sort.startswith("check")

    def still(text: str) -> bool:
        if not checks and check(Source("random.weft", text), OPS).problems.errors:
            return False
        found = fails(replace(spec, text=text))
        return found is not None and found.sort == failure.sort

    text, place, changed = spec.text, 0, False
    while True:
        # Only shorter ones, or two equals would take turns for ever.
        attempts = [attempt for attempt in _attempts(text) if len(attempt) < len(text)]
        found = next((n for n in range(place, len(attempts)) if still(attempts[n])), None)
        if found is not None:
            text, place, changed = attempts[found], found, True
        elif changed:
            place, changed = 0, False  # what was needed before may not be any more
        else:
            break
    return replace(spec, text=text)


def _attempts(text: str) -> Iterator[str]:
    """Texts with less in them, the boldest first."""
    lines = text.splitlines()
    spans = [(start, _end(lines, start)) for start in range(len(lines))]
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        if lines[start].strip():
            yield "\n".join((*lines[:start], *lines[end:])) + "\n"
    names = [line.split(" = ")[0].strip() for line in lines if line.startswith("    ") and " = " in line]
    for number, line in enumerate(lines):
        if line.strip().startswith("return ") and line.startswith("    "):
            for name in (*line.strip()[7:].split(", "), *names):
                yield "\n".join((*lines[:number], f"    return {name}", *lines[number + 1 :])) + "\n"
        if line.endswith(":") and line.strip().startswith(("if ", "for ")):
            body = [one[4:] for one in lines[number + 1 : _end(lines, number)]]
            if not any(one.strip() == "else:" for one in body):
                yield "\n".join((*lines[:number], *body, *lines[_end(lines, number) :])) + "\n"
        head, equals, value = line.partition(" = ")
        if equals and line.startswith("    ") and not line.strip().startswith(("param", "loss", "for")):
            for part in _operands(value):
                yield "\n".join((*lines[:number], head + equals + part, *lines[number + 1 :])) + "\n"


def _end(lines: list[str], start: int) -> int:
    """The line after the last that belongs to the one at `start`."""
    depth = len(lines[start]) - len(lines[start].lstrip())
    end = start + 1
    while end < len(lines) and lines[end].strip() and len(lines[end]) - len(lines[end].lstrip()) > depth:
        end += 1
    if end < len(lines) and lines[end].strip() == "else:":
        return _end(lines, end)
    return end


def _operands(value: str) -> list[str]:
    """What stands in brackets in an expression, and each of the arguments of a call that are names."""
    found: list[str] = []
    stack: list[int] = []
    for place, character in enumerate(value):
        if character == "(":
            stack.append(place)
        elif character == ")" and stack:
            inside = value[stack.pop() : place + 1]
            found += [inside, *re.findall(r"\b[a-z]+[0-9]+\b|\bx\b", inside)]
    return list(dict.fromkeys(found))
