"""Which graph a call of a decoder runs: that of its phase (codegen/phases.py), made when it is first asked for.

A phase is seen by the host, which never waits for a device: by how many rows come of words, of pictures; a tag whose
rows bring nothing of their own is looked at where it lies on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from ..codegen.decode import DecodeGraphs
from ..codegen.decode_stages import DecodeGraph, map_modules
from ..codegen.phases import Phase
from ..codegen.pipeline import Pass
from ..codegen.signature import Signature
from .model import run_passes


class RunGraphs:
    """The decoding graphs after passes, those of a step after `step_passes`."""

    def __init__(self, derived: DecodeGraphs, passes: tuple[Pass, ...], step_passes: tuple[Pass, ...]) -> None:
        self.derived = derived
        self.begin = run_passes(derived.begin, passes) if passes else derived.begin
        self.plan, self.caches = derived.plan, derived.caches
        self.row_signature, self.once_signature = derived.row_signature, derived.once_signature
        self._passes, self._step_passes = passes, step_passes
        self._made: dict[tuple[str, Phase | None], DecodeGraph] = {}

    @property
    def extend(self) -> DecodeGraph:
        return self.of("extend")

    @property
    def last(self) -> DecodeGraph:
        return self.of("last")

    @property
    def step(self) -> DecodeGraph:
        return self.of("step")

    def of(self, form: str, phase: Phase | None = None) -> DecodeGraph:
        found = self._made.get((form, phase))
        if found is None:
            graph = getattr(self.derived, form) if phase is None else self.derived.in_phase(form, phase)
            passes = self._step_passes if form == "step" else self._passes
            found = map_modules(graph, partial(run_passes, passes=passes)) if passes else graph
            self._made[form, phase] = found
        return found


class PhaseChoice:
    """Finds the phase of a call, for the tags that a model selects rows by."""

    def __init__(self, shape: Signature, tags: Sequence[str]) -> None:
        self._axis, self._along = shape.axes[0], tuple(slot.rows for slot in shape.inputs)
        self._places = {slot.name: place for place, slot in enumerate(shape.inputs) if slot.name in tags}
        # Axes whose rows have one value of a tag, and how many rows of the decoded axis each of theirs is.
        selected = ((s.tag, s.axis, 1, s.members) for s in shape.selected)
        self._owned = tuple((s.tag, s.owner, s.each, s.members) for s in shape.shown)
        self._one_value = tuple(one for one in (*selected, *self._owned) if len(one[-1]) == 1)

    def of_rows(self, values: Sequence[Tensor], lengths: Mapping[str, Sequence[int]]) -> Phase | None:
        """`values` of the row inputs; `lengths`: rows that each sequence gets along each axis."""
        if not self._places:
            return None
        counts = lengths[self._axis]
        is_owned = any(
            max(lengths[owner]) <= 1 and sum(lengths[owner]) * each == sum(counts) for _, owner, each, _ in self._owned
        )
        return self._of(values, alone=is_owned or max(counts) <= 1)

    def of_step(self, values: Sequence[Tensor]) -> Phase | None:
        """As of rows, where each sequence gets one."""
        return self._of(values, alone=True) if self._places else None

    def _of(self, values: Sequence[Tensor], alone: bool) -> Phase | None:
        rows = {axis: value.shape[0] for axis, value in zip(self._along, values, strict=True)}
        if not rows[self._axis]:
            return None
        found = ((tag, self._value(tag, values[place], rows)) for tag, place in self._places.items())
        tags = tuple((tag, member) for tag, member in found if member is not None)
        return Phase(tags, alone) if tags else None

    def _value(self, tag: str, values: Tensor, rows: Mapping[str | None, int]) -> int | None:
        if values.device.type == "cpu":
            return int(values[0]) if bool((values == values[0]).all()) else None
        whole = rows[self._axis]
        fits = (members[0] for of, axis, each, members in self._one_value if of == tag and rows[axis] * each == whole)
        return next(fits, None)
