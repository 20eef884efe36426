"""The spec's `optimise` lines to an optimiser over named weights.

    optimise by adamw(lr=3e-4, betas=(0.9, 0.95), decay=0.1, clip=1.0):
        embed: decay=0                  the first line whose pattern matches a weight decides
        head: lr=1e-4, clip=0.5         its own peak rate, and its own gradient norm

Settings: `lr`, `betas`, `eps`, `decay`, `clip` (0: no clipping); in a line also `schedule`, `lazy` and `moments`. A
rate given when a run is started replaces the spec's `lr` and keeps the proportion of each line to it. Decay is
decoupled: w <- w * (1 - lr * decay).

    schedule=shared      the rate follows the run's schedule, as all others do
    schedule=constant    it stays at the peak
    schedule=falling     its proportion to the run's rate falls from the peak's to 1 over the run
    lazy=true            rows of a table are updated when they are read next, to the same numbers (lazy_rows.py)
    moments=row          with it: one moment for each row instead of two for each entry (row_moments.py)

Frozen weights are left out; gradients still pass through them. A trainable weight that no row of a batch reached has
a zero gradient: moments and decay go on as usual.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..codegen.functions import row_tables
from ..dsl.patterns import select
from ..dsl.program import Optimiser as OptimiserSpec
from ..dsl.program import OptimiserSetting
from .errors import RuntimeFault
from .lazy_rows import LazyRows
from .parts import cut_like, cut_rows_like, is_in_parts, part_of, part_of_gradient, whole, whole_rows
from .ranks import ALONE, Ranks
from .row_moments import RowMoments
from .rows_behind import RowSettings

Settings = Iterable[tuple[str, OptimiserSetting]]


@dataclass(frozen=True)
class AdamWSettings:
    """Defaults hold where neither the spec nor the run says otherwise."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0
    lazy: bool = False
    schedule: str = "shared"
    moments: str = "entry"


@dataclass(frozen=True)
class Moment:
    """Where a run is at a step: the schedule's factor of every peak rate, and how much of the run is done, 0 .. 1."""

    factor: float = 1.0
    progress: float = 0.0


@dataclass(frozen=True)
class Group:
    """Weights with one set of settings. `clip_group` numbers the norm their gradients are clipped by; `base` is the
    peak rate of weights that no line names."""

    pattern: str  # "" for the weights no line matches
    settings: AdamWSettings
    clip_group: int
    paths: tuple[str, ...]
    base: float = 0.0

    def rate(self, at: Moment) -> float:
        """The learning rate of a step."""
        peak = self.settings.lr
        match self.settings.schedule:
            case "constant":
                return peak
            case "falling":
                return at.factor * (self.base + (peak - self.base) * (1 - at.progress))
            case _:
                return peak * at.factor


# The first and the second, of the weight's shape; of a table with one for each row, None and `[entries]`.
Moments = tuple[Tensor | None, Tensor]


@dataclass(eq=False)
class OptimiserState:
    """What a checkpoint holds of an optimiser: tensors by weight path, and the number of updates made."""

    moments: dict[str, Moments] = field(default_factory=dict)
    updates: int = 0


class WeightOptimiser:
    """AdamW over groups of named weights, with clipping per group. Of weights that lie on several ranks it updates
    this rank's parts, by norms of the whole."""

    def __init__(self, groups: Sequence[Group], weights: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.groups = tuple(group for group in groups if group.paths)
        self.weights = {path: weights[path] for group in self.groups for path in group.paths}
        if not self.weights:
            raise RuntimeFault("nothing to train: every weight is frozen or outside what the objective trains")
        self._parts = {path: part_of(weight) for path, weight in self.weights.items()}
        self._dense = tuple(group for group in self.groups if not group.settings.lazy)
        self._by_rows = tuple(group for group in self.groups if group.settings.lazy)
        self.lazy: dict[str, LazyRows | RowMoments] = {}
        for group in self._by_rows:
            for path in group.paths:
                rows = self.lazy[path] = self._rows_of(path, group.settings)
                for table in (weights[path], self._parts[path]):
                    setattr(table, row_tables.ATTRIBUTE, rows)
        self._adamw = self._make_adamw()

    def _rows_of(self, path: str, settings: AdamWSettings) -> LazyRows | RowMoments:
        part, of_rows = self._parts[path], RowSettings(settings.betas, settings.eps, settings.decay)
        if settings.moments == "entry":
            return LazyRows(part, of_rows)
        width = self.weights[path].shape[1:].numel()

        def means(own: Tensor, columns: int) -> Tensor:
            return self.ranks.sum(own * columns) / width

        return RowMoments(part, of_rows, means if part.shape[1:].numel() < width else None)

    def _make_adamw(self) -> torch.optim.AdamW | None:
        if not self._dense:
            return None
        return torch.optim.AdamW(
            [
                {
                    "params": [self._parts[path] for path in group.paths],
                    "lr": group.settings.lr,
                    "betas": group.settings.betas,
                    "eps": group.settings.eps,
                    "weight_decay": group.settings.decay,
                }
                for group in self._dense
            ],
            # One kernel over all weights; it exists for these two devices.
            fused=all(weight.device.type in ("cpu", "cuda") for weight in self.weights.values()),
        )

    def zero_grad(self) -> None:
        for weight in (*self.weights.values(), *self._parts.values()):
            weight.grad = None
        for rows in self.lazy.values():
            rows.forget_gradient()

    def divide_gradients(self, divisor: Tensor) -> None:
        for weight in self.weights.values():
            gradient = part_of_gradient(weight)
            if gradient is not None:
                gradient.div_(divisor)
        for rows in self.lazy.values():
            rows.divide_gradient(float(divisor))

    def gradient_norms(self) -> tuple[Tensor, ...]:
        """The norm of each clip group, in the order of their numbers. Weights without a gradient get one of zeros."""
        norms = []
        device = next(iter(self._parts.values())).device
        for number in range(1 + max(group.clip_group for group in self.groups)):
            members = [path for group in self.groups if group.clip_group == number for path in group.paths]
            gradients = []
            for path in members:
                weight, part = self.weights[path], self._parts[path]
                if path not in self.lazy:
                    gradient = part_of_gradient(weight)
                    part.grad = torch.zeros_like(part) if gradient is None else gradient
                    # What lies on every rank counts once.
                    if self.ranks.is_first or is_in_parts(weight):
                        gradients.append(part.grad)
                elif weight.grad is not None:
                    raise RuntimeFault(f"{path} is lazy, but something other than a lookup of rows reads it")
            parts = [get_total_norm(gradients).to(device)] if gradients else []
            parts += [self.lazy[path].gradient_norm() for path in members if path in self.lazy]
            # A number may have lost all of its weights to an earlier line.
            norms.append(torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros((), device=device))
        if self.ranks.is_alone:
            return tuple(norms)
        squares = self.ranks.sum(torch.stack(norms).double().square())
        return tuple(squares.sqrt().to(norms[0].dtype).unbind())

    def step(self, at: Moment, norms: Sequence[Tensor]) -> None:
        """Clips by `norms` (of `gradient_norms`) and updates."""
        for group, torch_group in zip(self._dense, self._adamw.param_groups if self._adamw else (), strict=True):
            torch_group["lr"] = group.rate(at)
            if group.settings.clip > 0:
                clip_grads_with_norm_(torch_group["params"], group.settings.clip, norms[group.clip_group])
        if self._adamw is not None:
            self._adamw.step()
        for group in self._by_rows:
            for path in group.paths:
                limit = group.settings.clip
                scale = min(1.0, limit / (float(norms[group.clip_group]) + 1e-6)) if limit > 0 else 1.0
                self.lazy[path].step(group.rate(at), scale)

    def bring_up(self) -> None:
        """Rows of lazy tables as dense AdamW would have them: before weights are read other than by a step."""
        for rows in self.lazy.values():
            rows.bring_up_all()

    def state(self) -> OptimiserState:
        """Moments of whole weights, as they are: no copies where weights lie on one rank. All ranks must ask."""
        self.bring_up()
        state = OptimiserState()
        for path, weight in self.weights.items():
            if path in self.lazy:
                rows = self.lazy[path]
                if rows.updates:
                    part = self._parts[path]
                    if isinstance(rows, RowMoments):
                        state.moments[path] = None, whole_rows(weight, rows.second)
                    else:
                        state.moments[path] = _both(weight, rows.first.view_as(part), rows.second.view_as(part))
                    state.updates = rows.updates
                continue
            assert self._adamw is not None
            entry = self._adamw.state.get(self._parts[path])
            if entry:
                state.moments[path] = _both(weight, entry["exp_avg"], entry["exp_avg_sq"])
                state.updates = int(entry["step"].item())
        return state

    def load_state(self, state: OptimiserState) -> None:
        """Goes on from a saved state, which must be of exactly these weights."""
        if state.updates and state.moments.keys() != self.weights.keys():
            odd = sorted(state.moments.keys() ^ self.weights.keys())
            raise RuntimeFault(
                f"the saved optimiser is for other weights: {odd[0]} is on one side only ({len(odd)} are)"
            )
        for path, (first, second) in state.moments.items():
            weight, part, rows = self.weights[path], self._parts[path], self.lazy.get(path)
            by_row = isinstance(rows, RowMoments)
            if by_row != (first is None):
                had, has = ("entry", "row") if by_row else ("row", "entry")
                raise RuntimeFault(f"the saved optimiser is of {path} with moments={had}, not with moments={has}")
            wanted = weight.shape[:1] if by_row else weight.shape
            for moment in (second,) if first is None else (first, second):
                if moment.shape != wanted:
                    shapes = f"{tuple(moment.shape)}, not {tuple(wanted)}"
                    raise RuntimeFault(f"the saved optimiser has another shape for {path}: {shapes}")
            if first is None:
                assert isinstance(rows, RowMoments)
                rows.load(cut_rows_like(weight, second), state.updates)
                continue
            first, second = cut_like(weight, first), cut_like(weight, second)
            if isinstance(rows, LazyRows):
                rows.load(first, second, state.updates)
                continue
            assert self._adamw is not None
            self._adamw.state[part] = {
                # Where torch's fused kernel keeps its count: beside the weight, in float32.
                "step": torch.tensor(float(state.updates), dtype=torch.float32, device=part.device),
                "exp_avg": first.to(part.device, part.dtype).clone(),
                "exp_avg_sq": second.to(part.device, part.dtype).clone(),
            }


def _both(weight: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return whole(weight, first), whole(weight, second)


def make_groups(
    spec: OptimiserSpec | None,
    paths: Iterable[str],
    left_out: Iterable[str] = (),
    trains: Sequence[str] = (),
    lr: float | None = None,
    decay: float | None = None,
    clip: float | None = None,
) -> tuple[Group, ...]:
    """Groups in the order of the lines, then the rest.

    `trains` are the objective's patterns (none: everything); `left_out` the weights that are frozen or that the
    objective does not read. `lr`, `decay` and `clip` are the run's own values and replace the spec's base settings.
    """
    every = tuple(paths)
    _check_patterns(spec, trains, every)
    skipped = set(left_out)
    if trains:
        skipped |= set(every) - {path for pattern in trains for path in select(pattern, every)}
    if spec is not None and spec.kind != "adamw":
        raise RuntimeFault(f"optimise by {spec.kind}: this version trains by adamw only")
    spec_base = _read_settings(spec.settings if spec else (), AdamWSettings(), "optimise")
    given = {"lr": lr, "decay": decay, "clip": clip}
    base = replace(spec_base, **{name: value for name, value in given.items() if value is not None})
    groups: list[Group] = []
    rest = [path for path in every if path not in skipped]
    clip_groups = 1
    for line in spec.lines if spec else ():
        settings = _line_settings(line.settings, line.pattern, spec_base, base)
        has_own_norm = any(name == "clip" for name, _ in line.settings)
        matched = select(line.pattern, rest)
        groups.append(Group(line.pattern, settings, clip_groups if has_own_norm else 0, matched, base.lr))
        clip_groups += has_own_norm
        rest = [path for path in rest if path not in set(matched)]
    groups.append(Group("", base, 0, tuple(rest), base.lr))
    return tuple(groups)


def _check_patterns(spec: OptimiserSpec | None, trains: Sequence[str], paths: tuple[str, ...]) -> None:
    lines = [line.pattern for line in spec.lines] if spec else []
    for word, patterns in (("optimise", lines), ("trains", trains)):
        for pattern in patterns:
            if not select(pattern, paths):
                first_parts = {path.split(".")[0] for path in paths}
                near = difflib.get_close_matches(pattern, [*paths, *first_parts], n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise RuntimeFault(f"{word}: no weight matches the pattern {pattern}{hint}")


def _line_settings(settings: Settings, pattern: str, spec_base: AdamWSettings, base: AdamWSettings) -> AdamWSettings:
    named = dict(settings)
    own = named.pop("lr", None)
    if own is not None:
        if not isinstance(own, int | float):
            raise RuntimeFault(f"optimise {pattern}: lr is a number")
        # In proportion to the spec's own rate, so that a run's --lr moves every group alike.
        base = replace(base, lr=base.lr * own / spec_base.lr if spec_base.lr else own)
    return _read_settings(named.items(), base, f"optimise {pattern}")


def _read_settings(settings: Settings, base: AdamWSettings, where: str) -> AdamWSettings:
    known = [entry.name for entry in fields(AdamWSettings)]
    for name, value in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
            raise RuntimeFault(f"{where}: no setting {name} ({hint})")
        if name in ("lazy", "schedule", "moments"):
            base = replace(base, **{name: value})
        elif name == "betas":
            if not isinstance(value, tuple) or len(value) != 2 or not all(0 <= beta < 1 for beta in value):
                raise RuntimeFault(f"{where}: betas are two numbers from 0 to 1, not {value}")
            base = replace(base, betas=(float(value[0]), float(value[1])))
        elif not isinstance(value, int | float) or value < 0:
            raise RuntimeFault(f"{where}: {name} is one number, not below 0; got {value}")
        else:
            base = replace(base, **{name: float(value)})
    return base
