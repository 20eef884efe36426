"""What was measured to be best on one device, by subject (subjects.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .configuration import Configuration

OURS, TORCH = "triton", "torch"


@dataclass(frozen=True)
class Choice:
    """`microseconds`: what was measured; None where the configuration is the default, which nobody measured."""

    configuration: Configuration
    microseconds: float | None = None

    @property
    def is_torch(self) -> bool:
        return self.configuration.implementation == TORCH


@dataclass(frozen=True, eq=False)
class Choices:
    device: str
    best: Mapping[str, Choice] = field(default_factory=dict)

    def of(self, subject: str, default: Configuration) -> Choice:
        return self.best.get(subject) or Choice(default)
