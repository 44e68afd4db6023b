"""Faults on purpose: after each, and one more run, nothing is lost, doubled, wrong or left lying about.

A few trials of every fault here; ``python -m tests.faults`` makes fifty, for ``results/reliability.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.faults.faults import (
    FAULTS,
    clock_jumps,
    dead_decoder,
    full_disk,
    killed,
    quota,
    read_only,
    two_at_once,
    why_not,
)
from tests.faults.trials import Fault, Outcome, Session, repeat, session
from tests.faults.works import HARNESS, SCORING, TRAINING_RUN, Work

SLOW = (clock_jumps, dead_decoder)
"""Faults that need a server of their own, or patience."""
EVERYWHERE = (full_disk, quota, read_only, two_at_once)
"""Faults that every work meets; here the main ones."""
TRIALS = int(os.environ.get("FAULT_TRIALS", "50"))


def _is_slow(fault: Fault, work: Work) -> bool:
    return fault in SLOW or (fault in EVERYWHERE and work not in (SCORING, HARNESS, TRAINING_RUN))


CASES = [
    pytest.param(name, work, id=f"{name}, {work.name}", marks=[pytest.mark.slow] * _is_slow(fault, work))
    for name, (fault, works) in FAULTS.items()
    for work in works
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    if sys.platform != "linux":
        pytest.skip("the faults are made with means of Linux")
    with session(tmp_path_factory.mktemp("faults")) as started:
        yield started


def check(opened: Session, name: str, work: Work, trials: int) -> Outcome:
    fault = FAULTS[name][0]
    if reason := why_not(fault):
        pytest.skip(reason)
    outcome = repeat(opened, work, fault, range(trials), seed=1)
    assert outcome.clean, "\n".join((str(outcome), *outcome.seen))
    assert outcome.trials == trials
    return outcome


@pytest.mark.parametrize(("name", "work"), CASES)
def test_a_fault_costs_nothing(opened: Session, name: str, work: Work) -> None:
    check(opened, name, work, 5 if FAULTS[name][0] is killed else 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("work", FAULTS["SIGKILL at a random moment"][1], ids=lambda work: work.name)
def test_kills_at_many_moments(opened: Session, work: Work) -> None:
    outcome = check(opened, "SIGKILL at a random moment", work, TRIALS)
    assert outcome.struck > TRIALS / 3, "the kills came too late"
