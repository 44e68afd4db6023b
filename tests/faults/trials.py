"""One trial: a run under a fault, the next run undisturbed, and a comparison with a run that nothing happened to."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.faults.server import Server
from tests.faults.works import Result, Work, World, clear, files_in, make_world
from tests.support.local_server import serving

DECLARED, NO_SCORE = 2, 1
"""Exit codes of a declared error, and of a scoring that left images without a score."""
ANY = 1000


def same(found: str, expected: str, rounding: float) -> bool:
    """Whether two results, as text, are equal, or numbers that differ by rounding alone."""
    if found == expected:
        return True
    try:
        return abs(float(found) - float(expected)) <= rounding
    except ValueError:
        return False


@dataclass(frozen=True)
class Outcome:
    """What trials came to.

    Attributes:
        trials: Number of trials.
        struck: Trials in which the fault was felt: the run ended by it, refused, or said so.
        lost: Scores, figures, weights or files that are missing after the next run, or had to be made again.
        doubled: Those that are there twice.
        wrong: Those with another value, and runs that claimed success with another result.
        left: Files left lying about after the next run.
        crashed: Runs that ended with anything but success or a declared error.
        seen: What was seen where a trial is not clean.
    """

    trials: int = 0
    struck: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    left: int = 0
    crashed: int = 0
    seen: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.wrong or self.left or self.crashed)


@dataclass
class Session:
    """What the trials of one session share.

    Attributes:
        world: Inputs of the works.
        folder: Where outputs go.
        expected: By work: the result, the files and the seconds of an undisturbed run.
    """

    world: World
    folder: Path
    expected: dict[str, tuple[Result, Counter[str], float]] = field(default_factory=dict)
    _servers: dict[str, Server] = field(default_factory=dict)

    def server(self, name: str = "", environment: Mapping[str, str] = {}) -> Server:
        """A server of that name, started when it is first asked for."""
        if name not in self._servers:
            self._servers[name] = Server(environment)
        return self._servers[name]

    def expect(self, work: Work) -> tuple[Result, Counter[str], float]:
        """What an undisturbed run of a work leaves; run when it is first asked for."""
        if work.name not in self.expected:
            output = self.folder / "undisturbed"
            for _ in range(2):  # the first also loads what the server has not imported
                clear(output)
                started = time.perf_counter()
                code = self.server().run(work.job(self.world, output))
                seconds = time.perf_counter() - started
            if code:
                raise RuntimeError(f"{work.name} ends with {code}: {(self.folder / 'undisturbed.log').read_text()}")
            self.expected[work.name] = (work.result(output), files_in(output), seconds)
            shutil.copytree(output, self.folder / work.name)
        return self.expected[work.name]

    def close(self) -> None:
        """End all servers."""
        for opened in self._servers.values():
            opened.close()


@contextlib.contextmanager
def session(folder: Path) -> Iterator[Session]:
    """A session in an empty folder."""
    for name in ("world", "trials"):
        (folder / name).mkdir()
    with serving() as served:
        opened = Session(make_world(folder / "world", served), folder / "trials")
        try:
            yield opened
        finally:
            opened.close()


@dataclass(frozen=True)
class Trial:
    """One trial's tools.

    Attributes:
        session: What it shares with others.
        work: What is run.
        output: Its output folder, empty.
        random: Draws of this trial.
    """

    session: Session
    work: Work
    output: Path
    random: random.Random

    @property
    def expected(self) -> Result:
        """The result of an undisturbed run."""
        return self.session.expect(self.work)[0]

    @property
    def seconds(self) -> float:
        """How long the work takes undisturbed."""
        return self.session.expect(self.work)[2]

    @property
    def undisturbed(self) -> Path:
        """A copy of what an undisturbed run leaves."""
        self.session.expect(self.work)
        return self.session.folder / self.work.name

    def run(self, **limits: Any) -> int:
        """Run the work; its exit code."""
        return self.session.server().run(self.work.job(self.session.world, self.output, **limits))

    def start(self, **limits: Any) -> int:
        """Start the work; the number of its process. The server's ``finish`` waits for it."""
        return self.session.server().start(self.work.job(self.session.world, self.output, **limits))

    def finish(self) -> int:
        """Wait for what was started; its exit code."""
        return self.session.server().finish()

    @property
    def message(self) -> str:
        """What the last run printed."""
        path = self.output.parent / f"{self.output.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def under(self, code: int, *accepted: int, wrong: Callable[[], int] | None = None) -> Outcome:
        """The outcome so far: whether the fault was felt, and whether the run ended as it may.

        Args:
            code: The exit code of the run under the fault.
            *accepted: Exit codes, besides success, by which it may end; ``ANY`` way.
            wrong: Counts wrong values of the run; by default a run that claims success with another result is wrong.
        """
        differs = wrong() if wrong else int(code == 0 and self.work.result(self.output) != self.expected)
        crashed = code not in (0, *accepted) or "Traceback (most recent call last)" in self.message
        crashed = crashed and ANY not in accepted
        seen = (self._note(f"exit code {code}, {differs} wrong: {self.message[-1500:]}"),) * bool(differs or crashed)
        return Outcome(struck=int(code != 0), wrong=differs, crashed=int(crashed), seen=seen)

    def compare(self, rounding: float = 0.0) -> Outcome:
        """Run once more, undisturbed, and compare with what an undisturbed run leaves.

        Args:
            rounding: By how much scores that the disturbed run kept may differ.
        """
        code = self.run()
        files = self.session.expect(self.work)[1]
        there = files_in(self.output)
        found = self.work.result(self.output)
        names, values = Counter(name for name, _ in found), dict(found)
        outcome = Outcome(
            trials=1,
            lost=sum(name not in values for name, _ in self.expected) + (files - there).total(),
            doubled=sum(count - 1 for count in names.values()),
            wrong=sum(not same(values.get(name, value), value, rounding) for name, value in self.expected),
            left=(there - files).total(),
            crashed=int(code != 0),
        )
        if outcome.clean:
            return outcome
        seen = f"next run: exit code {code}; left {dict(there - files)}; lacks {dict(files - there)}"
        return outcome + Outcome(seen=(self._note(f"{seen}: {self.message[-1500:]}"),))

    def _note(self, text: str) -> str:
        return f"{self.work.name}, {self.output.name}: {text}"


Fault = Callable[[Trial], Outcome]


def repeat(opened: Session, work: Work, fault: Fault, trials: Iterable[int], seed: int) -> Outcome:
    """Run a fault on a work some times, each with draws of its own.

    Args:
        opened: The session.
        work: The work.
        fault: The fault.
        trials: Numbers of the trials; with the seed they decide every draw.
        seed: The seed.
    """
    total = Outcome()
    opened.expect(work)
    for number in trials:
        output = opened.folder / f"trial-{number}"
        clear(output)
        draws = random.Random(f"{seed} {fault.__name__} {work.name} {number}")
        total += fault(Trial(opened, work, output, draws))
        clear(output)
    return total
