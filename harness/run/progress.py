"""How a run reports itself on standard error: a bar, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
import time

from qualiclip_plugin.utils.shown import printable


class Silent:
    """Receives the progress of a run, and says nothing."""

    def start(self, scorer: str, dataset: str, total: int, done: int) -> None: ...

    def advance(self, images: int) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


Reporter = Silent
"""What all reporters can be told."""


class JsonLines(Silent):
    """One JSON object per event; progress at most once a second."""

    def start(self, scorer: str, dataset: str, total: int, done: int) -> None:
        """A cell begins."""
        self.cell = {"scorer": scorer, "dataset": dataset, "total": total}
        self.done, self.last = done, 0.0
        self._write("start", done=done)

    def advance(self, images: int) -> None:
        """Some more images are scored."""
        self.done += images
        if time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            self._write("progress", done=self.done)

    def note(self, text: str) -> None:
        """Something a person should know."""
        print(json.dumps({"event": "note", "time": time.time(), "text": text}), file=sys.stderr, flush=True)

    def finish(self) -> None:
        """The cell is done."""
        self._write("finish", done=self.done)

    def _write(self, event: str, **values: object) -> None:
        line = {"event": event, "time": time.time(), **self.cell, **values}
        print(json.dumps(line), file=sys.stderr, flush=True)


class Bar(Silent):
    """One bar per scorer and dataset, with images per second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def start(self, scorer: str, dataset: str, total: int, done: int) -> None:
        """A cell begins."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.began, self.fresh = time.monotonic(), 0
        self.task = self.progress.add_task(printable(f"{scorer} on {dataset}"), total=total, completed=done, rate="")
        self.progress.start()

    def advance(self, images: int) -> None:
        """Some more images are scored."""
        self.fresh += images
        rate = self.fresh / max(1e-9, time.monotonic() - self.began)
        self.progress.update(self.task, advance=images, rate=f"{rate:.1f} images/s")

    def note(self, text: str) -> None:
        """Something a person should know."""
        self.console.print(printable(text), markup=False, highlight=False, style="yellow")

    def finish(self) -> None:
        """The cell is done."""
        self.progress.stop()


def reporter(*, quiet: bool = False, json_log: bool = False) -> Reporter:
    """The reporter that the command line asks for."""
    return Silent() if quiet else JsonLines() if json_log else Bar()
