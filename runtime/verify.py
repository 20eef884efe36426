"""Compares what the compiler makes of a spec with the unfused graph in float64, part by part.

    for part in verify(checked, torch.float32, with_gradients=True): ...

A region (one fused call) is given the same operands as its truth, so its error is its own. What whole graphs compute,
and what the derived decoder computes row by row, may be off as far as the unfused graph is in the same type, and a
region's limit more. Kernels run on the device, or in Triton's interpreter (`prepare`).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from ..codegen.decode_stages import modules
from ..codegen.gpu.shared_tables import Shared
from ..codegen.lower import signature
from ..codegen.origin import origin, user_span
from ..codegen.pipeline import GPU_PASSES, Pass, optimise
from ..codegen.quick_interpreter import quicken
from ..codegen.spec_comment import comment
from ..dsl.check import Checked
from ..dsl.diagnostics import SpecErrors
from ..dsl.program import Program, Weight
from ..dsl.source import Span
from .decode_phases import RunGraphs
from .decoder import Decoder
from .draws import Draws, draw_arguments
from .errors import GenerateFault, RuntimeFault
from .kernel_calls import KernelCall, kernel_calls, listed
from .kernels import attach_kernels
from .model import Model
from .packed import offsets_of
from .sample_inputs import sample_inputs, settled, unequal_examples

# Of the largest entry of the truth: rounding of one region, whose statistics are summed in at least float32.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-3}
# A gradient passes through a region's rounding twice, and is rounded itself.
GRADIENT = 2.5
# Attention's gradient reads the result as well, as it was rounded when it was stored: one rounding more on the way, and
# the larger one where its weights are near 0 and 1. Every backward that goes through the keys once has it.
READS_RESULT = 2.0
# How much further off than the unfused graph in the same type a whole graph may be, besides a region's limit.
WHOLE = 3.0
# Whole numbers and flags come from comparisons, which rounding may turn; in float64 none may differ.
DIFFERENT = {torch.float64: 0.0, torch.float32: 0.01, torch.bfloat16: 0.05}
# Rows of each example along an axis; the next axis has them in another order.
LENGTHS = (0, 1, 7, 3, 0, 5)


@dataclass(frozen=True)
class Part:
    """One comparison. `kind`: region, region gradient, output, loss, gradient or decode. `place` is the spec line it
    serves (of a region, its result's, with the numbers of all that it serves). `error`: the largest difference, of the
    truth's largest entry; infinite where `note` says what broke."""

    program: str
    kind: str
    name: str
    place: str
    error: float
    limit: float
    note: str = ""

    @property
    def is_ok(self) -> bool:
        return self.error <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program,
            "kind": self.kind,
            "name": self.name,
            "place": self.place,
            "error": self.error if math.isfinite(self.error) else None,
            "limit": self.limit,
            "ok": self.is_ok,
            "note": self.note,
        }


@dataclass(frozen=True)
class NotCompared:
    """Something that cannot be compared, and why: a model without a decoder."""

    program: str
    kind: str
    why: str


def prepare() -> torch.device:
    """Where kernels run: the GPU if there is one, else this CPU through Triton's interpreter.

    Raises RuntimeFault when triton has been imported for a GPU that is not there.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    from ..codegen.gpu.fused import INTERPRETED

    if not INTERPRETED:
        raise RuntimeFault("there is no GPU, and triton was imported without TRITON_INTERPRET=1: set it beforehand")
    quicken()
    return torch.device("cpu")


def verify(
    checked: Checked,
    dtype: torch.dtype = torch.float32,
    with_gradients: bool = False,
    passes: tuple[Pass, ...] = GPU_PASSES,
    seed: int = 0,
) -> Iterator[Part | NotCompared]:
    """Every model and objective of a spec. `dtype` is that of weights and computation."""
    device = prepare()
    model = Model(checked, dtype, device, seed, passes)
    exact = Model(checked, torch.float64, device, seed=None, passes=())
    _draw_weights(model, exact, seed)
    for program in (*checked.models.values(), *checked.objectives.values()):
        check = _Check(model, exact, program, dtype, seed)
        yield from check.regions(with_gradients)
        yield from check.whole(with_gradients)
        if not program.losses:
            yield from check.decoding()


@torch.no_grad()
def _draw_weights(model: Model, exact: Model, seed: int) -> None:
    """As the spec starts them and a little more, so that no gain is one and no bias zero; the same in both."""
    generator = torch.Generator().manual_seed(seed)
    truth = dict(exact.by_path())
    for path, parameter in model.by_path():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
        truth[path].copy_(parameter)


class _Check:
    """One program: its graphs, and inputs for them."""

    def __init__(self, model: Model, exact: Model, program: Program, dtype: torch.dtype, seed: int) -> None:
        self.model, self.exact, self.program, self.dtype = model, exact, program, dtype
        self.truth, self.unfused = exact.reference(program), model.reference(program)
        self.fused = optimise(self.unfused, model.passes)
        self.calls = kernel_calls(self.fused)
        attach_kernels(self.fused)
        self.signature = signature(self.truth)
        self.lengths = settled(self.signature, unequal_examples(self.signature, LENGTHS), seed)
        self.inputs = sample_inputs(self.signature, self.lengths, seed, model.device)

    def arguments(self, dtype: torch.dtype) -> list[Tensor]:
        """Reals hold the same numbers in every type: those that the checked type can hold."""
        given = [x.to(self.dtype).to(dtype) if x.is_floating_point() else x for x in self.inputs]
        given += [offsets_of(self.lengths[axis]).to(self.model.device) for axis in self.signature.axes]
        if self.signature.draws:
            given += draw_arguments(Draws(), len(LENGTHS), self.model.device)
        return given

    def part(
        self, kind: str, name: str, place: Span | str | None, got: Any, want: Any, limit: float, note: str = ""
    ) -> Part:
        if not note and isinstance(got, Tensor) and not got.is_floating_point():
            limit = DIFFERENT[self.dtype]
        error = math.inf if note else _error(got, want)
        said = place if isinstance(place, str) else "" if place is None else comment(place)
        return Part(self.program.name, kind, name, said, error, limit, note)

    # -- regions -----------------------------------------------------------------------------------

    def regions(self, with_gradients: bool) -> Iterator[Part]:
        """Every fused call, on the operands that the fused graph gives it."""
        runner = _Operands(self.fused, self.calls)
        try:
            with torch.no_grad():
                runner.run(*self.arguments(self.dtype))
        except Exception as error:  # noqa: BLE001 - whatever breaks a kernel is what is looked for
            node = runner.at
            name = "?" if node is None else _where(node)
            call = None if node is None else self.calls.get(node.name)
            place = call.place() if call is not None else None if node is None else user_span(node)
            yield self.part("region", name, place, None, None, LIMITS[self.dtype], _said(error))
            return
        for node in self.fused.graph.nodes:
            call = self.calls.get(node.name)
            if call is not None:
                yield from self.region(node, call, runner.operands[node], with_gradients)

    def region(
        self, node: fx.Node, call: KernelCall, operands: Mapping[fx.Node, Any], with_gradients: bool
    ) -> Iterator[Part]:
        where, limit = _where(node), LIMITS[self.dtype]
        given = {name: _leaf(value, None) for name, value in operands.items()}
        wide = {name: _leaf(value, torch.float64) for name, value in operands.items()}
        kernel: Any = node.target
        got = listed(kernel(*_filled(node.args, given), **_filled(node.kwargs, given)))
        want = listed(call.truth(_filled(node.args, wide), _filled(node.kwargs, wide)))
        for number, (one, two) in enumerate(zip(got, want, strict=True)):
            name = where if len(got) == 1 else f"{where}[{number}]"
            # Two factors that were rounded before they are multiplied, and the rounded product: as far as a gradient.
            most = GRADIENT * limit if getattr(kernel, "rounds_between", False) else limit
            yield self.part("region", name, call.place(number), one, two, most)
        if not with_gradients:
            return
        from ..codegen.gpu.attention import attend  # after `prepare`

        steep = GRADIENT * limit * (READS_RESULT if kernel is attend else 1.0)
        grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(x) for x in got]
        _back(got, grads)
        _back(want, [grad.double() for grad in grads])
        for operand, one in given.items():
            # A value that no weight or input reaches has no gradient in the fused graph.
            if isinstance(one, Tensor) and one.grad is not None:
                name = f"{where}, d {operand}"
                yield self.part("region gradient", name, call.place(), one.grad, wide[operand].grad, steep)

    # -- whole graphs ------------------------------------------------------------------------------

    def whole(self, with_gradients: bool) -> Iterator[Part]:
        names = [name for name, _ in self.program.outputs]
        for term in self.program.losses:
            names += [f"{term.name}, sum", f"{term.name}, rows"]
        spans = self.output_spans()
        kind = "loss" if self.program.losses else "output"
        want, near = _run(self.truth, self.arguments(torch.float64)), _run(self.unfused, self.arguments(self.dtype))
        try:
            got = _run(self.fused, self.arguments(self.dtype))
        except Exception as error:  # noqa: BLE001 - as above
            yield self.part(kind, names[0], spans[0], None, None, LIMITS[self.dtype], _said(error))
            return
        for name, span, one, two, three in zip(names, spans, got, want, near, strict=True):
            limit = LIMITS[self.dtype] + WHOLE * _error(three, two)
            yield self.part(kind, name, span, one.detach(), two.detach(), limit)
        if with_gradients:
            made = [
                _gradients(tree, results)
                for tree, results in ((self.model, got), (self.exact, want), (self.model, near))
            ]
            reads = self.weight_spans()
            for path, weight in self.model.weights.items():
                one, two, three = (found.get(path) for found in made)
                if two is not None:
                    limit = GRADIENT * LIMITS[self.dtype] + WHOLE * _error(three, two)
                    yield self.part("gradient", path, reads.get(path, weight.span), one, two, limit)

    def output_spans(self) -> list[Span | None]:
        results: Any = self.truth.graph.output_node().args[0]
        return [user_span(node) if isinstance(node, fx.Node) else None for node in listed(results)]

    def weight_spans(self) -> dict[str, Span | None]:
        """Where each weight is first read."""
        found: dict[str, Span | None] = {}
        for node in self.truth.graph.find_nodes(op="get_attr"):
            value = origin(node).value
            if isinstance(value, Weight) and node.users:
                found.setdefault(value.path, user_span(next(iter(node.users))))
        return found

    # -- decoding ----------------------------------------------------------------------------------

    def decoding(self) -> Iterator[Part | NotCompared]:
        """Row by row, and many rows at a time; as many sequences as there are examples with rows."""
        try:
            decoder = Decoder(self.model, self.program)
        except (SpecErrors, GenerateFault) as fault:
            yield NotCompared(self.program.name, "decode", str(fault).strip().splitlines()[0])
            return
        axis = decoder.graphs.plan.axis.name
        if decoder.graphs.plan.with_rows:
            owners = ", ".join(owner.name for owner in decoder.graphs.plan.with_rows)
            why = f"rows of {owners} come whole, and are not compared row by row"
            yield NotCompared(self.program.name, "decode", why)
            return
        _attach(decoder.graphs)
        lengths = {**self.lengths, axis: tuple(max(length, 1) for length in self.lengths[axis])}
        inputs = sample_inputs(self.signature, lengths, 1, self.model.device)
        self.inputs, self.lengths = inputs, settled(self.signature, lengths, 1)
        want, near = _run(self.truth, self.arguments(torch.float64)), _run(self.unfused, self.arguments(self.dtype))
        rows, once = self._split(axis)
        counts = lengths[axis]
        for suffix, run in (("", _decoded), (", in pieces", _in_pieces)):
            names = [f"{name}{suffix}" for name, _ in self.program.outputs]
            try:
                got = run(decoder, rows, once, counts)
            except Exception as error:  # noqa: BLE001 - as above
                yield self.part(
                    "decode", names[0], self.output_spans()[0], None, None, LIMITS[self.dtype], _said(error)
                )
                return
            for name, span, one, two, three in zip(names, self.output_spans(), got, want, near, strict=True):
                limit = LIMITS[self.dtype] + WHOLE * _error(three, two)
                yield self.part("decode", name, span, one, two.detach(), limit)

    def _split(self, axis: str) -> tuple[dict[str, list[Tensor]], dict[str, Any]]:
        """Inputs along the decoded axis, one tensor a sequence, and the others as the runtime takes them."""
        rows: dict[str, list[Tensor]] = {}
        once: dict[str, Any] = {}
        for slot, tensor in zip(self.signature.inputs, self.arguments(self.dtype), strict=False):
            if slot.rows is None:
                once[slot.name] = tensor
            else:
                parts = list(tensor.split(list(self.lengths[slot.rows])))
                (rows if slot.rows == axis else once)[slot.name] = parts
        return rows, once


class _Operands(fx.Interpreter):
    """Keeps what calls read, by node. `at`: the node that is being run."""

    def __init__(self, module: fx.GraphModule, calls: Mapping[str, KernelCall]) -> None:
        super().__init__(module)
        self.calls = calls
        self.operands: dict[fx.Node, dict[fx.Node, Any]] = {}
        self.at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        if n.name in self.calls:
            self.operands[n] = {operand: self.env[operand] for operand in n.all_input_nodes}
        return super().run_node(n)


def _leaf(value: Any, dtype: torch.dtype | None) -> Any:
    """An operand of its own, with a gradient where there may be one."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().to(dtype or value.dtype).requires_grad_()
    # A call by itself has a whole gradient, not a part of one.
    return None if isinstance(value, Shared) else value


def _filled(args: Any, values: Mapping[fx.Node, Any]) -> Any:
    return map_aggregate(args, lambda arg: values[arg] if isinstance(arg, fx.Node) else arg)


def _attach(graphs: RunGraphs) -> None:
    for graph in (graphs.begin, graphs.extend, graphs.last, graphs.step):
        for module in modules(graph):
            attach_kernels(module)


def _decoded(
    decoder: Decoder, rows: Mapping[str, Sequence[Tensor]], once: Mapping[str, Any], counts: Sequence[int]
) -> list[Tensor]:
    """The results of each output, `[all rows, ...]`, made one row at a time."""
    state = decoder.begin(len(counts), max(counts), once)
    made: dict[tuple[int, int], list[Tensor]] = {}
    for place in range(max(counts)):
        active = [place < count for count in counts]
        step = {name: torch.stack([x[min(place, len(x) - 1)] for x in parts]) for name, parts in rows.items()}
        results, state = decoder.step(state, step, active)
        outputs = list(results.values()) if isinstance(results, dict) else [results]
        for number, on in enumerate(active):
            if on:
                made[number, place] = [output[number] for output in outputs]
    order = [made[number, place] for number, count in enumerate(counts) for place in range(count)]
    return [torch.stack(column) for column in zip(*order, strict=True)]


def _in_pieces(
    decoder: Decoder, rows: Mapping[str, Sequence[Tensor]], once: Mapping[str, Any], counts: Sequence[int]
) -> list[Tensor]:
    """As `_decoded`, made half of each sequence at a time: a prompt, and rows after it."""
    state = decoder.begin(len(counts), max(counts), once)
    made: list[list[list[Tensor]]] = []  # by half, output, sequence
    halves = [(count + 1) // 2 for count in counts]
    for pieces in ([slice(half) for half in halves], [slice(half, None) for half in halves]):
        given = {name: [x[piece] for x, piece in zip(parts, pieces, strict=True)] for name, parts in rows.items()}
        results, state = decoder.extend(state, given)
        outputs = list(results.values()) if isinstance(results, dict) else [results]
        sizes = [len(x) for x in next(iter(given.values()))]
        made.append([list(output.split(sizes)) for output in outputs])
    first, second = made
    return [torch.cat([x for both in zip(*two, strict=True) for x in both]) for two in zip(first, second, strict=True)]


# -- comparing ---------------------------------------------------------------------------------------------------------


def _error(got: Tensor | None, want: Tensor | None) -> float:
    """The largest difference, of the largest entry of `want`; of whole numbers, the share that differs."""
    if want is None or got is None:
        other = got if want is None else want
        return 0.0 if other is None or not other.any() else math.inf
    if got.shape != want.shape:
        return math.inf
    if not want.numel():
        return 0.0
    if not want.is_floating_point():
        return (got != want).double().mean().item()
    difference = (got.detach().double() - want.detach().double()).abs().max().item()
    size = want.detach().double().abs().max().item()
    if math.isnan(difference):
        return math.inf
    return difference / size if size > 1e-12 else difference


def _run(graph: fx.GraphModule, arguments: list[Tensor]) -> list[Tensor]:
    return list(graph(*arguments))


def _gradients(tree: Model, results: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Of every weight, for fixed gradients of the results."""
    for parameter in tree.parameters():
        parameter.grad = None
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(x.shape, generator=generator) for x in results]
    _back(results, [grad.to(x) for grad, x in zip(grads, results, strict=True)])
    return {path: None if p.grad is None else p.grad.clone() for path, p in tree.by_path()}


def _back(results: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    pairs = [(x, grad) for x, grad in zip(results, grads, strict=True) if x.requires_grad]
    if pairs:
        torch.autograd.backward([x for x, _ in pairs], [grad for _, grad in pairs])


def _where(node: fx.Node) -> str:
    """A call by its kernel and the loop turns around it: `layer.3 attention_rms_norm`."""
    turns = [f"{frame.name}.{frame.index}" for frame in origin(node).scope if frame.index is not None]
    return " ".join((*turns, str(getattr(node.target, "name", node.name))))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
