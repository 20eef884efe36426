"""Ctrl-C and SIGTERM as a request to stop at the end of the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from .ranks import Ranks

REASONS = (None, "Ctrl-C", "SIGTERM")


class StopRequest:
    """While entered, the first signal asks to stop; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers; elsewhere the caller's own stay.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> str | None:
        """The reason, if any rank was asked to stop: all stop after the same step."""
        return REASONS[ranks.largest(REASONS.index(self.reason))]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
