"""Stopping a run politely: a signal is noted, the step or image under way is finished."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNAL_EXITS = {"SIGINT": 130, "SIGTERM": 143}
"""Exit codes that shells expect of a program that a signal ended."""


class StopSignal:
    """Notes SIGTERM and SIGINT for the length of a block, so that work under way is finished and kept.

    Attributes:
        name: The signal that came first, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal came."""
        return self.name is not None

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread of a program may handle signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
