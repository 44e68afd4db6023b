"""A bar on standard error for work that takes a while: silence looks like a hang."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], text: str, number: int, *, stays: bool = False) -> Iterable[Item]:
    """The same ``number`` items, with a bar that goes when they are through, or ``stays``, also in a log."""
    from rich.console import Console
    from rich.progress import track as tracked

    return tracked(items, text, total=number, console=Console(stderr=True), transient=not stays)
