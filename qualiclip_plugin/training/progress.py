"""The display of a training run: a progress bar on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from qualiclip_plugin.utils.shown import printable

PLAIN_SECONDS = 30.0
"""Without a terminal, a line is printed after this many seconds."""
SMOOTHING = 0.9


class ProgressWithNote(Progress):
    """A progress bar with a line of figures below it: beside it, they would leave the bar no room."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar and the line."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.note, overflow="ellipsis", no_wrap=True)


class Display:
    """Progress of a run.

    Args:
        skipped: Photographs that are left out, with the reason; new ones are named.
    """

    def __init__(self, skipped: Mapping[str, str], *, enabled: bool) -> None:
        self.console = Console(stderr=True, quiet=not enabled, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = ProgressWithNote(*columns, console=self.console, disable=not enabled or not self.terminal)
        self._task: TaskID | None = None
        self._smooth: dict[str, float] = {}
        self._printed = time.monotonic()
        self._skipped, self._reported = skipped, 0

    @property
    def terminal(self) -> bool:
        """Whether a bar can be drawn."""
        return self.console.is_terminal

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A task before the training, with a count; yields a function that takes the number done."""
        if not self.terminal:
            self.say(f"{what}: {total}")
        with Progress(console=self.console, transient=True, disable=self.progress.disable) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def start(self, step: int, steps: int) -> None:
        """Begin to show a run at ``step``."""
        self.report_skipped()
        self._task = self.progress.add_task("training", total=steps, completed=step)
        self.steps = steps

    def report_skipped(self) -> None:
        """Name the photographs that were left out since the last report (the first ten of them)."""
        new = list(self._skipped.items())[self._reported :]
        self._reported += len(new)
        for name, reason in new[:10]:
            self.say(f"skipped {reason if name in reason else f'{name}: {reason}'}")
        if len(new) > 10:
            self.say(f"skipped {len(new) - 10} more photographs; all are named in skipped.csv")

    def step(self, step: int, figures: dict[str, float], parts: Sequence[str]) -> None:
        """Show one step's figures, smoothed over about ten steps."""
        for name, value in figures.items():
            before = self._smooth.get(name, value)
            self._smooth[name] = SMOOTHING * before + (1 - SMOOTHING) * value
        head, tail = (
            " ".join(f"{name} {self._smooth[name]:.3g}" for name in names) for names in (("loss", "accuracy"), parts)
        )
        note = f"{head} {self._smooth['images_per_second']:.0f} images/s  {tail}"
        self.progress.note = note
        if self._task is not None:
            self.progress.update(self._task, completed=step)
        self.report_skipped()
        now = time.monotonic()
        if not self.terminal and (now - self._printed > PLAIN_SECONDS or step == self.steps):
            left = (self.steps - step) * self._smooth["seconds"]
            self.say(f"step {step}/{self.steps} {note}, {left / 60:.1f} min left")
            self._printed = now

    def validation(self, step: int, figures: dict[str, Any]) -> None:
        """Show validation figures."""
        names = ("ranking_accuracy", "d_test", "l_test", "srcc")
        shown = ", ".join(f"{name} {figures[name]:.3f}" for name in names if name in figures)
        self.say(f"validation at step {step}: {shown}")
