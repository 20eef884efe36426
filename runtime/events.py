"""What a training run tells whoever started it. The loop prints nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .cut_lengths import CutStatistics
from .run_config import RunConfig
from .table_usage import TableUsage


@dataclass(frozen=True)
class RunStarted:
    """Everything is loaded; the first step follows."""

    config: RunConfig
    device: str
    parameters: int
    trained: int
    groups: tuple[str, ...]  # one line per optimiser group
    documents: int
    tokens: int
    examples: int
    held_out: int
    step: int  # steps already done


@dataclass(frozen=True)
class StepDone:
    """One optimiser step. `seconds_left` is None until there is something to judge by."""

    step: int
    steps: int
    losses: Mapping[str, float]
    total: float
    gradient_norm: float
    lr: float
    tokens: int
    tokens_per_second: float
    seconds_left: float | None
    bits_per_byte: float | None = None  # where tokens are bytes
    cuts: Mapping[str, CutStatistics] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    step: int
    losses: Mapping[str, float]
    total: float
    tokens: int
    bits_per_byte: float | None = None
    tables: Mapping[str, TableUsage] = field(default_factory=dict)  # by path: how memory tables were read


@dataclass(frozen=True)
class Saved:
    step: int
    path: Path


@dataclass(frozen=True)
class Notice:
    """Something worth a line: what was held out, what was set aside."""

    text: str


@dataclass(frozen=True)
class RunEnded:
    """`reason` is "finished" or what stopped it ("Ctrl-C", "SIGTERM", "stop_after")."""

    step: int
    reason: str
    checkpoint: Path
    out: Path


Event = RunStarted | StepDone | Evaluated | Saved | Notice | RunEnded
