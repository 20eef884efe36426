"""Running the derived decoder: state of a run, prompts, further rows.

    decoder = Decoder(model)
    logits, state = decoder.prefill([[1, 2, 3], [4]], capacity=64)     results of each prompt's last row
    logits, state = decoder.step(state, tokens)                        one row per sequence

Caches are made once for `capacity` rows per sequence and written in place, so a state that has been continued is used
up: go on from the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.decode import derive
from ..codegen.decode_plan import CacheSpec
from ..codegen.graph_context import NotLowered
from ..codegen.passes.constants import constants
from ..codegen.phases import Phase
from ..codegen.pipeline import CPU_PASSES, CPU_STEP_PASSES
from ..codegen.signature import Slot
from ..dsl.diagnostics import Mistake, SpecErrors
from ..dsl.program import Program
from ..dsl.render import render
from .decode_phases import PhaseChoice, RunGraphs
from .errors import GenerateFault, InputFault
from .model import Model
from .packed import empty_rows, offsets_of, pack


@dataclass(frozen=True)
class DecodeState:
    """Sequences under way. `lengths` [B] on the device and `known_lengths` on the host are the rows each has so far.

    `carried` are the values made once at the beginning, with `carried_offsets` of their axes.
    """

    caches: tuple[Tensor, ...]
    lengths: Tensor
    known_lengths: tuple[int, ...]
    capacity: int
    carried: tuple[Tensor, ...]
    carried_offsets: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return len(self.known_lengths)

    @property
    def is_even(self) -> bool:
        return len(set(self.known_lengths)) <= 1


class Decoder:
    """The decoding graphs of one model of a spec, for the type its weights have now. `phases`: calls whose rows all
    have one tag run graphs of their own (codegen/phases.py)."""

    def __init__(self, model: Model, program: Program | None = None, phases: bool = True) -> None:
        self.model = model
        self.program = program or model.program
        self.dtype = model.dtype
        self.graphs = _run_graphs(self.program, model)
        self._phases = PhaseChoice(self.graphs.row_signature, self.graphs.derived.tags if phases else ())
        self.weights_read = weights_read(model)
        self._one_each: Tensor | None = None
        # The axes whose offsets a call takes: the decoded one, and those whose rows come with rows of it.
        plan = self.graphs.plan
        self._axes_given = (plan.axis.name, *(axis.name for axis in plan.with_rows))
        outputs, in_step = self.graphs.row_signature.outputs, {name for name, _ in plan.row_outputs}
        self._row_outputs = tuple(slot for slot in outputs if slot.name in in_step)

    @property
    def row_inputs(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.graphs.row_signature.inputs)

    # -- beginning ---------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, size: int, capacity: int, inputs: Mapping[str, Any] | None = None) -> DecodeState:
        """A state without rows for `size` sequences. `inputs` are the model's inputs that do not grow."""
        if size < 1:
            raise GenerateFault("there are no sequences to decode")
        if capacity < 1:
            raise GenerateFault(f"a capacity of {capacity} rows holds nothing")
        device, shape = self.model.device, self.graphs.once_signature
        batch = pack(shape, (), inputs or {}, self.dtype, device)
        if batch.size not in (None, size):
            raise InputFault(f"there are {size} sequences, but inputs for {batch.size}")
        # What is made from nothing is made on the CPU.
        carried = tuple(value.to(device) for value in self.graphs.begin(*batch.arguments(shape)))
        caches = tuple(
            torch.zeros(spec.shape(size, capacity), dtype=spec.dtype, device=device) for spec in self.graphs.caches
        )
        lengths = torch.zeros(size, dtype=torch.int64, device=device)
        offsets = tuple(batch.offsets[axis] for axis in shape.axes)
        return DecodeState(caches, lengths, (0,) * size, capacity, carried, offsets)

    def prefill(self, prompts: Any, capacity: int, inputs: Mapping[str, Any] | None = None) -> tuple[Any, DecodeState]:
        """Begins with the rows of each prompt: the results of every prompt's last row, `[batch, ...]`, and the state.

        `prompts` is one ragged input, or a mapping when the model has several along the decoded axis.
        """
        shape = self.graphs.row_signature
        given = prompts if isinstance(prompts, Mapping) else {self.row_inputs[0]: prompts}
        size = pack(shape, (), given, self.dtype).size or 0
        return self.extend(self.begin(size, capacity, inputs), given, last_only=True)

    def select(self, state: DecodeState, kept: Sequence[int], capacity: int | None = None) -> DecodeState:
        """The state of some of the sequences, in the order given. Caches are copied, with room for `capacity` rows;
        None: for as many as before."""
        capacity = state.capacity if capacity is None else capacity
        index = torch.tensor(list(kept), dtype=torch.int64, device=state.lengths.device)
        shape = self.graphs.once_signature
        starts = {axis: offsets.tolist() for axis, offsets in zip(shape.axes, state.carried_offsets, strict=True)}

        def chosen(value: Tensor, slot: Slot) -> Tensor:
            if slot.rows is not None:
                bounds = starts[slot.rows]
                return torch.cat([value[bounds[i] : bounds[i + 1]] for i in kept])
            return value.index_select(0, index) if slot.per_example else value

        offsets = [offsets_of([starts[axis][i + 1] - starts[axis][i] for i in kept]) for axis in shape.axes]
        return replace(
            state,
            caches=tuple(
                _with_room(cache, spec, capacity).index_select(0, index)
                for cache, spec in zip(state.caches, self.graphs.caches, strict=True)
            ),
            lengths=state.lengths.index_select(0, index),
            known_lengths=tuple(state.known_lengths[i] for i in kept),
            capacity=capacity,
            carried=tuple(chosen(value, slot) for value, slot in zip(state.carried, shape.outputs, strict=True)),
            carried_offsets=tuple(bounds.to(index.device) for bounds in offsets),
        )

    def beside(self, states: Sequence[DecodeState]) -> DecodeState:
        """The sequences of several states of one capacity as those of one."""
        shape = self.graphs.once_signature
        carried = zip(*(state.carried for state in states), strict=True)
        offsets = zip(*(state.carried_offsets for state in states), strict=True)
        return DecodeState(
            caches=tuple(map(torch.cat, zip(*(state.caches for state in states), strict=True))),
            lengths=torch.cat([state.lengths for state in states]),
            known_lengths=tuple(length for state in states for length in state.known_lengths),
            capacity=states[0].capacity,
            carried=tuple(
                torch.cat(values) if slot.rows is not None or slot.per_example else values[0]
                for values, slot in zip(carried, shape.outputs, strict=True)
            ),
            carried_offsets=tuple(
                offsets_of(torch.cat([one.diff() for one in own]).tolist()).to(own[0].device) for own in offsets
            ),
        )

    # -- going on ----------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self, state: DecodeState, rows: Any, last_only: bool = False) -> tuple[Any, DecodeState]:
        """Any number of new rows per sequence. Results are packed `[new rows, ...]`; with `last_only`, of each
        sequence's last new row,
        `[batch, ...]`."""
        shape = self.graphs.row_signature
        given = rows if isinstance(rows, Mapping) else {self.row_inputs[0]: rows}
        batch = pack(shape, (), given, self.dtype, self.model.device)
        counts = batch.lengths[shape.axes[0]]
        if len(counts) != state.size:
            raise InputFault(f"there are {state.size} sequences, but rows for {len(counts)}")
        if last_only and 0 in counts:
            raise GenerateFault(f"sequence {counts.index(0)} has no rows, so it has no last row: give it at least one")
        phase = self._phases.of_rows(batch.values, batch.lengths)
        offsets = tuple(batch.offsets[axis] for axis in self._axes_given)
        return self._go_on("last" if last_only else "extend", phase, state, batch.values, offsets, counts)

    def look(self, state: DecodeState, rows: Any) -> Any:
        """Results of further rows, as `extend` gives them, while `state` stays what it is: the next call begins where
        this one did. A picture that is still being made is looked at so."""
        # A cache with a slot for every row holds these rows where the next ones will be; others would lose older rows.
        kept = tuple(
            cache if spec.slots is None else cache.clone()
            for cache, spec in zip(state.caches, self.graphs.caches, strict=True)
        )
        return self.extend(replace(state, caches=kept), rows)[0]

    @torch.no_grad()
    def step(self, state: DecodeState, rows: Any, active: Sequence[bool] | None = None) -> tuple[Any, DecodeState]:
        """One new row per sequence, `[batch, ...]` of each input; results `[batch, ...]`. Rows are taken as they are:
        this is the inner loop. Sequences that are not `active` are computed but do not grow."""
        given = self._rows_of_step(rows, state)
        counts = tuple(int(flag) for flag in active) if active is not None else (1,) * state.size
        offsets = (
            self._step_offsets(state),
            *(torch.zeros_like(self._step_offsets(state)) for _ in self._axes_given[1:]),
        )
        return self._go_on("step", self._phases.of_step(given), state, given, offsets, counts, grows_by=1)

    def _rows_of_step(self, rows: Any, state: DecodeState) -> tuple[Tensor, ...]:
        """What a step is given of each row input. No row that owns others, such as a picture, comes in a step."""
        given = rows if isinstance(rows, Mapping) else {self.row_inputs[0]: rows}
        owners = self._axes_given[1:]
        device = state.lengths.device
        return tuple(
            given[slot.name] if slot.rows not in owners else empty_rows(slot, self.dtype, device)
            for slot in self.graphs.row_signature.inputs
        )

    def _step_offsets(self, state: DecodeState) -> Tensor:
        """One row per sequence. Kept, because every small operation between the weights of two steps is a slow one."""
        size, device = state.size, state.lengths.device
        if self._one_each is None or self._one_each.shape[0] != size + 1 or self._one_each.device != device:
            self._one_each = torch.arange(size + 1, dtype=torch.int32, device=device)
        return self._one_each

    def _go_on(
        self,
        form: str,
        phase: Phase | None,
        state: DecodeState,
        values: tuple[Tensor, ...],
        offsets: tuple[Tensor, ...],
        counts: tuple[int, ...],
        grows_by: int | None = None,
    ) -> tuple[Any, DecodeState]:
        known = tuple(length + count for length, count in zip(state.known_lengths, counts, strict=True))
        longest = max(known)
        columns = longest if grows_by is None else max(state.known_lengths) + grows_by
        if longest > state.capacity:
            which = known.index(longest)
            raise GenerateFault(f"sequence {which} has {longest} rows, more than the capacity of {state.capacity}")
        # A sequence that ended when it was full writes its ignored row nowhere new.
        lengths = state.lengths if columns <= state.capacity else state.lengths.clamp(max=state.capacity - 1)
        graph = self.graphs.of(form, phase)
        results = graph.forward(
            *values,
            *offsets,
            *state.carried,
            *state.carried_offsets,
            lengths,
            min(columns, state.capacity),
            state.is_even,
            *state.caches,
            *(constants(graph) if isinstance(graph, fx.GraphModule) else ()),
        )
        grown = torch.tensor(counts, dtype=torch.int64).to(state.lengths.device) if set(counts) != {1} else 1
        slots = self.graphs.row_signature.outputs if form == "extend" else self._row_outputs
        result = results[0] if len(slots) == 1 else dict(zip((slot.name for slot in slots), results, strict=True))
        grown_state = DecodeState(
            state.caches, state.lengths + grown, known, state.capacity, state.carried, state.carried_offsets
        )
        return result, grown_state


def _with_room(cache: Tensor, spec: CacheSpec, capacity: int) -> Tensor:
    """A cache as it is in a run of another capacity, which has room for the rows that are there: they lie in the same
    slots."""
    dim = 1 + len(spec.before)
    slots = spec.shape(0, capacity)[dim]
    more = slots - cache.shape[dim]
    if more <= 0:
        return cache.narrow(dim, 0, slots)
    empty = (*cache.shape[:dim], more, *cache.shape[dim + 1 :])
    return torch.cat([cache, cache.new_zeros(empty)], dim)


def decoder_of(model: Model) -> Decoder:
    """The decoder of a model's main model, derived once for each type of its weights."""
    decoder = model.decoders.get(model.dtype)
    if decoder is None or decoder.weights_read != weights_read(model):
        decoder = model.decoders[model.dtype] = Decoder(model)
    return decoder


def weights_read(model: Model) -> tuple[tuple[int, int], ...]:
    """Changes when a weight does: a decoder may hold copies in another order."""
    return tuple((parameter.data_ptr(), parameter._version) for _, parameter in model.by_path())


def _run_graphs(program: Program, model: Model) -> RunGraphs:
    try:
        # On a CPU torch attends for a single bfloat16 query several times slower than for a float32 one.
        narrow = model.device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16)
        graphs = derive(program, model, model.dtype, attended=torch.float32 if narrow else None)
    except Mistake as mistake:
        text = render(mistake.error.describe(), color=False)
        raise SpecErrors((mistake.error,), text) from None
    except NotLowered as missing:
        raise GenerateFault(str(missing)) from None
    return RunGraphs(graphs, model.passes, CPU_STEP_PASSES if model.passes is CPU_PASSES else model.passes)
