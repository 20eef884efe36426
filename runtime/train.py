"""The training loop, top to bottom.

A run is a function of its config, its spec and its data: weights start from the seed, batches follow from seed and
position, draws from seed, step and example. A run that is killed and resumed therefore ends with the same bits, on
the same machine and libraries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ..dsl.program import Program
from .checkpoint import (
    ModelIdentity,
    SpecText,
    StartedFrom,
    TrainingState,
    apply_weights,
    checkpoint_name,
    keep_last,
    save_checkpoint,
)
from .cut_lengths import cross_entropy_of, cuts_of
from .data import Corpus
from .errors import RuntimeFault
from .events import Evaluated, Event, Notice, RunEnded, RunStarted, Saved, StepDone
from .interrupts import StopRequest
from .loader import Batch, BatchPlan, TokenLoader, held_out_batches
from .metrics import NoLogs, RunLogs, measured_record, write_json
from .model import Model, load
from .optimiser import Group, Moment, WeightOptimiser, make_groups
from .parts import whole
from .patch_counting import counter_of_segments
from .ranks import ALONE, Ranks
from .run_config import RunConfig
from .run_folder import CHECKPOINTS, RUN, ResumePoint, find_resume_point, locked, read_resume_point
from .schedule import Schedule
from .start_weights import start_from
from .table_usage import ReadCounter, bags_of
from .tokens import BYTE_VOCABULARIES
from .train_step import StepOptions, StepResult, Trainable, evaluate, train_step
from .training_data import load_data, loader_of, pack_of


@dataclass(frozen=True)
class TrainResult:
    """`reason` is "finished", or what stopped the run. `losses` are those of the last step taken here."""

    step: int
    tokens: int
    reason: str
    checkpoint: Path
    losses: dict[str, float]


def train(
    config: RunConfig, on_event: Callable[[Event], None] = lambda event: None, ranks: Ranks = ALONE
) -> TrainResult:
    """Trains as `config` says, until the run is finished or asked to stop. Mistakes are RuntimeFaults of one line. Of
    several ranks each calls this with the same config; the first writes and tells of events."""
    _check_processes(config, ranks)
    out = Path(config.out)
    if not ranks.is_first:
        on_event = _to_nobody
    with locked(out) if ranks.is_first else nullcontext(), _torch_settings(config):
        run = _prepare(config, out, ranks, on_event)
        open_logs = RunLogs if ranks.is_first else NoLogs
        with open_logs(out, config.tensorboard, run.step) as logs, StopRequest() as stop:
            try:
                with ranks.watched():
                    return _loop(config, run, logs, stop, on_event)
            except RuntimeFault as fault:
                raise type(fault)(f"{fault}; {_where_to_go_back(run.checkpoint)}") from None


def _to_nobody(event: Event) -> None:
    pass


def _check_processes(config: RunConfig, ranks: Ranks) -> None:
    if config.processes != ranks.count:
        raise RuntimeFault(
            f"processes = {config.processes}, but {ranks.count} were started: `weft train` and torchrun start them"
        )


def _loop(
    config: RunConfig, run: _Run, logs: RunLogs, stop: StopRequest, on_event: Callable[[Event], None]
) -> TrainResult:
    model = cast(Trainable, run.model)
    working = _working_type(config, run.model)
    ranks = run.ranks
    options = StepOptions(run.identity.objective, config.seed, config.accumulate, working, run.has_cuts, ranks)
    schedule = make_schedule(config)
    clock = _Clock(config.steps - run.step)
    while True:
        batch = run.loader.next_batch()
        run.step, run.tokens = run.step + 1, run.tokens + batch.rows
        at = schedule.moment(run.tokens if config.schedule_tokens else run.step)
        result = train_step(model, run.optimiser, batch, options, run.step, at)
        clock.tick(batch.rows)
        done = _step_done(config, run, result, at, clock)
        logs.train(done, clock.seconds)
        on_event(done)

        is_last = run.step == config.steps
        if run.held_out and (is_last or run.step % config.eval_every == 0):
            run.optimiser.bring_up()
            reads = ReadCounter(ranks) if run.has_tables else None
            losses, tokens = evaluate(model, run.held_out, options, reads)
            run.model.let_go()
            bits, tables = _bits_per_byte(run, losses), {} if reads is None else reads.usage()
            evaluated = Evaluated(run.step, losses, sum(losses.values()), tokens, bits, tables)
            run.held_out_bits = evaluated.bits_per_byte
            logs.evaluation(evaluated)
            on_event(evaluated)

        reason = "finished" if is_last else stop.agreed(ranks)
        if reason is None and run.step == config.stop_after:
            reason = "stop_after"
        if reason is not None or run.step % config.save_every == 0:
            logs.sync()
            run.checkpoint = _save(config, run, done)
            on_event(Saved(run.step, run.checkpoint))
            if reason is not None:
                on_event(RunEnded(run.step, reason, run.checkpoint, Path(config.out)))
                return TrainResult(run.step, run.tokens, reason, run.checkpoint, dict(result.losses))


@dataclass(eq=False)
class _Run:
    """What the loop works on. `step` and `tokens` are what has been done, `checkpoint` the last one saved."""

    model: Model
    identity: ModelIdentity
    groups: tuple[Group, ...]
    optimiser: WeightOptimiser
    loader: TokenLoader
    held_out: tuple[Batch, ...]
    ranks: Ranks
    step: int = 0
    tokens: int = 0
    checkpoint: Path | None = None
    started_from: tuple[StartedFrom, ...] = ()
    byte_loss: str | None = None  # the loss that is nats of the next byte
    has_cuts: bool = False
    has_tables: bool = False
    held_out_bits: float | None = None


def _save(config: RunConfig, run: _Run, done: StepDone) -> Path:
    folder = Path(config.out) / CHECKPOINTS
    settings = config.model_dump(mode="json")
    measured = measured_record(done.bits_per_byte, run.held_out_bits, done.cuts)
    path = folder / checkpoint_name(run.step)
    # Whatever the number of ranks, a checkpoint is the same: each weight as a whole, written by the first.
    latents = run.loader.corpus.manifest.latents
    state = TrainingState(run.optimiser.state(), run.loader.state_dict(), settings, run.started_from, measured, latents)
    weights = {name: whole(weight) for name, weight in run.model.by_path()}
    if run.ranks.is_first:
        save_checkpoint(path, run.identity, weights, run.step, run.tokens, state)
        keep_last(folder, config.keep)
    return path


def make_schedule(config: RunConfig) -> Schedule:
    """In tokens when the config gives the schedule's end in tokens, else in steps."""
    if config.schedule_tokens is not None:
        return Schedule(config.schedule, config.warmup_tokens or 0, config.schedule_tokens, config.final_fraction)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(2000, config.steps // 50)
    return Schedule(config.schedule, warmup, config.steps, config.final_fraction)


# --- before the loop -----------------------------------------------------------------------------------------------


def _prepare(config: RunConfig, out: Path, ranks: Ranks, on_event: Callable[[Event], None]) -> _Run:
    """Loads everything, and the state to go on from; says what was found."""
    resumed = _resume_point(config, out, ranks)
    _check_same_run(config, resumed)
    model = _load_model(config, ranks)
    objective = model.objective(config.objective)
    identity = _identity(model, objective)
    _check_same_spec(identity, resumed)
    corpus = load_data(config, model, objective)
    groups = _make_groups(config, model, objective)
    plan = BatchPlan(config.tokens_per_step, config.examples_per_step, config.seed, patches=config.patches_per_step)
    evaluation = _evaluation_plan(config, plan)
    held_out = held_out_batches(corpus, evaluation, config.eval_tokens, pack_of(corpus)) if config.eval_every else ()
    started_from = _fill(config, model, resumed)
    if not ranks.is_alone:
        _shard(config, model, groups, ranks)
    optimiser = WeightOptimiser(groups, dict(model.by_path()), ranks)
    loader = loader_of(corpus, plan, lambda: counter_of_segments(model, objective, tuple(corpus.columns)))
    run = _Run(model, identity, groups, optimiser, loader, held_out, ranks, started_from=started_from)
    run.byte_loss = cross_entropy_of(objective) if config.tokenizer in BYTE_VOCABULARIES else None
    run.has_cuts = bool(cuts_of(model.given(objective, corpus.columns)))
    run.has_tables = bool(bags_of(model.given(objective, corpus.columns)))
    if resumed is not None:
        run.held_out_bits = resumed.training.measured.get("held_out_bits_per_byte")
        run.optimiser.load_state(resumed.training.optimiser)
        run.loader.load_state_dict(dict(resumed.training.loader))
        run.step, run.tokens, run.checkpoint = resumed.manifest.step, resumed.manifest.tokens, resumed.path
    _check_not_over(config, run.step)
    if ranks.is_first:
        write_json(out / RUN, config.model_dump(mode="json"))
    on_event(_started(config, run, corpus))
    for text in _notices(config, corpus, resumed, run.started_from):
        on_event(Notice(text))
    return run


def _resume_point(config: RunConfig, out: Path, ranks: Ranks) -> ResumePoint | None:
    """The first rank looks for it, and sets aside what is in the way."""
    found = find_resume_point(out, config.resume) if ranks.is_first else None
    path = ranks.from_first(None if found is None else str(found.path))
    return read_resume_point(Path(path)) if found is None and path is not None else found


def _fill(config: RunConfig, model: Model, resumed: ResumePoint | None) -> tuple[StartedFrom, ...]:
    """The weights that the run goes on from, or starts with; which of them another checkpoint gave."""
    if resumed is None:
        return start_from(dict(model.by_path()), config.weights)
    # The checkpoint holds all weights, also those that another one gave: that one may be gone.
    apply_weights(dict(model.by_path()), resumed.weights, resumed.path)
    return resumed.training.started_from


def _shard(config: RunConfig, model: Model, groups: Sequence[Group], ranks: Ranks) -> None:
    from .shards import shard  # takes a second to import

    shard(model, ranks, {path for group in groups if group.settings.lazy for path in group.paths}, config.tables)


def _load_model(config: RunConfig, ranks: Ranks) -> Model:
    device = config.device
    if not ranks.is_alone:
        device = "cpu"  # from where each rank takes its part
    elif device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    # Started from the seed even when the weights come from a checkpoint: what is resumed must be the same program.
    model = load(config.spec, config.size, config.overrides or None, dtype, device, config.seed, tuning=config.tuning)
    if not isinstance(model, Model):
        raise RuntimeFault(f"{config.spec} is a compiled artifact, which has no objective: train its spec")
    if config.recompute:
        model.recompute()
    return model


def _evaluation_plan(config: RunConfig, plan: BatchPlan) -> BatchPlan:
    """Evaluation packs whole examples; a run that counts patches alone has no other budget for it."""
    if plan.tokens is None and plan.examples is None:
        return replace(plan, tokens=max(config.max_length, 8192))
    return plan


def _make_groups(config: RunConfig, model: Model, objective: Program) -> tuple[Group, ...]:
    read = {weight.path for weight in objective.weights}
    left_out = [path for path, weight in model.weights.items() if weight.frozen or path not in read]
    return make_groups(
        model.checked.optimiser, model.weights, left_out, objective.trains, config.lr, config.decay, config.clip
    )


def _identity(model: Model, objective: Program) -> ModelIdentity:
    checked = model.checked
    texts = tuple(SpecText(file.name, file.text) for file in checked.files)
    overrides = {
        name: value for name, value in checked.overrides.items() if isinstance(value, int | float | str | tuple)
    }
    return ModelIdentity(texts, checked.size, overrides, objective.name)


def _check_same_run(config: RunConfig, resumed: ResumePoint | None) -> None:
    differences = config.differences(resumed.training.run) if resumed else []
    if differences:
        raise RuntimeFault(
            f"the run in {config.out} was started with other settings ({'; '.join(differences)}): give the old ones, "
            "or start a new run"
        )


def _check_same_spec(identity: ModelIdentity, resumed: ResumePoint | None) -> None:
    if resumed is None or identity.spec_hash == resumed.manifest.spec_hash:
        return
    saved = {entry.name: entry.text for entry in resumed.manifest.model.spec}
    changed = [entry.name for entry in identity.spec if saved.get(entry.name) != entry.text]
    name = changed[0] if changed else identity.spec[0].name
    raise RuntimeFault(
        f"{resumed.path} is a checkpoint of another spec: {name} has changed since; restore it, or start a new run"
    )


def _check_not_over(config: RunConfig, step: int) -> None:
    end = min(config.steps, config.stop_after or config.steps)
    if step >= end:
        raise RuntimeFault(f"the run in {config.out} is already at step {step} of {end}: give more steps to go on")


def _working_type(config: RunConfig, model: Model) -> torch.dtype | None:
    if config.precision == "bfloat16" or (config.precision == "auto" and model.device.type == "cuda"):
        return torch.bfloat16
    return None


def _notices(
    config: RunConfig, corpus: Corpus, resumed: ResumePoint | None, started_from: tuple[StartedFrom, ...]
) -> Iterator[str]:
    for start in started_from if resumed is None else ():
        yield f"{start.path}.** starts as {start.checkpoint}"
    if resumed is not None:
        yield f"resumed from {resumed.path}"
        before = resumed.training.run["steps"]
        if before != config.steps and config.schedule != "constant" and not config.schedule_tokens:
            yield f"steps changed from {before} to {config.steps}: the schedule is stretched"
    elif config.resume:
        yield f"{config.out} has no checkpoint yet: starting at step 0"
    if config.eval_fraction and corpus.held_out_by_window:
        yield f"only {len(corpus.names)} documents: single windows are held out, not whole documents"


def _started(config: RunConfig, run: _Run, corpus: Corpus) -> RunStarted:
    model, groups = run.model, run.optimiser.groups
    trained = sum(weight.numel() for weight in run.optimiser.weights.values())
    lines = []
    for group in groups:
        s = group.settings
        name = group.pattern or "other weights" if len(groups) > 1 else "all weights"
        rate = f"lr {s.lr:g}" + (f" {s.schedule}" if s.schedule != "shared" else "")
        line = f"{name} ({len(group.paths)}): {rate}, betas {s.betas}, decay {s.decay:g}, clip {s.clip:g}"
        moments = ", a moment for each row" if s.moments == "row" else ""
        lines.append(line + (", rows updated when read" if s.lazy else "") + moments)
    manifest = corpus.manifest
    counts = (manifest.documents, manifest.tokens, len(corpus.train), len(corpus.held_out))
    return RunStarted(config, str(model.device), model.parameter_count(), trained, tuple(lines), *counts, run.step)


# --- in the loop ---------------------------------------------------------------------------------------------------


class _Clock:
    """Wall-clock speed, over about the last twenty steps. Nothing that is computed depends on it."""

    def __init__(self, steps_left: int) -> None:
        self.seconds = 0.0
        self.steps_left = steps_left
        self._begin = self._before = time.monotonic()
        self._ticks = 0
        self._mean_seconds = self._mean_rows = 0.0

    def tick(self, rows: int) -> None:
        moment = time.monotonic()
        took = moment - self._before
        # The first step lowers graphs and loads kernels: the second starts the mean anew.
        self._ticks += 1
        share = 1.0 if self._ticks <= 2 else max(1 / (self._ticks - 1), 0.05)
        self._mean_seconds += share * (took - self._mean_seconds)
        self._mean_rows += share * (rows - self._mean_rows)
        self.seconds = moment - self._begin
        self._before = moment
        self.steps_left -= 1

    @property
    def tokens_per_second(self) -> float:
        return self._mean_rows / max(self._mean_seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return self._mean_seconds * self.steps_left if self._ticks > 1 else None


def _step_done(config: RunConfig, run: _Run, result: StepResult, at: Moment, clock: _Clock) -> StepDone:
    # The rate of the weights that no line names; it stands for the run's.
    lr = run.groups[-1].rate(at)
    speed, left = clock.tokens_per_second, clock.seconds_left
    return StepDone(
        run.step,
        config.steps,
        result.losses,
        result.total,
        result.gradient_norm,
        lr,
        run.tokens,
        speed,
        left,
        _bits_per_byte(run, result.losses),
        result.cuts,
    )


def _bits_per_byte(run: _Run, losses: Mapping[str, float]) -> float | None:
    return None if run.byte_loss is None else losses[run.byte_loss] / math.log(2)


def _where_to_go_back(checkpoint: Path | None) -> str:
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint had been saved yet"


@contextmanager
def _torch_settings(config: RunConfig) -> Iterator[None]:
    """Torch's process-wide switches for the time of the run."""
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory = cast(Any, torch.utils.deterministic)  # its attributes are made at import; a type checker sees none
    filled = memory.fill_uninitialized_memory
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    # Filling every new tensor with NaN finds bugs; it makes no result more repeatable.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
        memory.fill_uninitialized_memory = filled
        torch.set_num_threads(threads)
