"""Events of a training run to lines, or to a progress bar where a terminal is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TextIO

from .events import Evaluated, Event, Notice, RunEnded, RunStarted, Saved, StepDone
from .table_usage import TableUsage


class Reporter:
    """Call it with each event. Use as a context: a bar must be taken down whatever happens."""

    def __init__(self, stream: TextIO | None = None, bar: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._log_every = 1
        if self._stream.isatty() if bar is None else bar:
            self._bar = _make_bar(self._stream)
        self._say: Callable[[str], None] = self._bar.console.print if self._bar else self._print

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._started(event)
            case StepDone():
                self._step(event)
            case Evaluated():
                self._say(f"step {event.step}: held-out {_losses(event)}{_bits(event)} ({event.tokens:,} tokens)")
                for path, usage in event.tables.items():
                    self._say(f"  {_usage(path, usage)}")
            case Saved():
                self._say(f"step {event.step}: saved {event.path}")
            case Notice():
                self._say(event.text)
            case RunEnded():
                self._ended(event)

    def _started(self, event: RunStarted) -> None:
        for name, value in event.config.model_dump(mode="json").items():
            if value not in (None, [], {}):
                self._say(f"  {name} = {value}")
        self._log_every = event.config.log_every
        self._say(f"{event.parameters:,} parameters, {event.trained:,} of them trained, on {event.device}")
        for line in event.groups:
            self._say(f"  {line}")
        self._say(
            f"{event.documents:,} documents, {event.tokens:,} tokens: {event.examples:,} examples, "
            f"{event.held_out:,} held out"
        )
        if self._bar is not None:
            fields = {"loss": "", "speed": "", "left": ""}
            self._task = self._bar.add_task("", total=event.config.steps, completed=event.step, **fields)
            self._bar.start()

    def _step(self, event: StepDone) -> None:
        left = "" if event.seconds_left is None else str(timedelta(seconds=round(event.seconds_left)))
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=event.step,
                loss=f"loss {event.total:.4f}",
                speed=f"{event.tokens_per_second:,.0f} tokens/s",
                left=left and f"{left} left",
            )
        elif event.step % self._log_every == 0 or event.step == event.steps:
            self._say(
                f"step {event.step}/{event.steps}  {_losses(event)}{_bits(event)}{_cuts(event)}  "
                f"norm {event.gradient_norm:.3g}  lr {event.lr:.3g}  {event.tokens_per_second:,.0f} tokens/s"
                + (f"  {left} left" if left else "")
            )

    def _ended(self, event: RunEnded) -> None:
        if self._bar is not None:
            self._bar.stop()
        if event.reason == "finished":
            self._say(f"finished after {event.step} steps: {event.checkpoint}")
        else:
            self._say(f"stopped by {event.reason} after step {event.step}; the same command with --resume goes on")

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def _losses(event: StepDone | Evaluated) -> str:
    total = f"loss {event.total:.4f}"
    if len(event.losses) < 2:
        return total
    return total + " (" + ", ".join(f"{name} {value:.4f}" for name, value in event.losses.items()) + ")"


def _bits(event: StepDone | Evaluated) -> str:
    return "" if event.bits_per_byte is None else f"  {event.bits_per_byte:.3f} bits/byte"


def _cuts(event: StepDone) -> str:
    return "".join(f"  {cut.segments} {name} of {cut.mean:.2f}" for name, cut in event.cuts.items())


def _usage(path: str, usage: TableUsage) -> str:
    half, *_ = usage.top
    return (
        f"{path}: {usage.used:.1%} of {usage.entries:,} rows read in {usage.reads:,} reads, {half:,} rows hold half; "
        f"KL to even {usage.kl:.3f} nats ({usage.floor:.3f} if reads were even), by weight {usage.kl_weights:.3f}"
    )


def _make_bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=stream, highlight=False, markup=False)
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
