"""The table of trials and losses, for people."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping

import torch
from tabulate import tabulate

from qualiclip_plugin.utils.environment import versions
from tests.benchmarks.bench_training import device_text
from tests.faults.trials import Outcome

COLUMNS = ("trials", "struck", "lost", "doubled", "wrong", "left", "crashed")
PREFACE = """# Reliability

What faults cost: `python -m tests.faults` disturbs a run (seed {seed}, {trials} of every fault and work), lets the
same command run once more, and compares with a run that nothing happened to. Measured {date} on {device};
{versions}.

| column | meaning |
|---|---|
| trials, struck | disturbed runs; those that were affected: they ended, refused, or reported it |
| lost | scores, figures, weights or files missing after the next run; scores stored before a kill and made again |
| doubled | the same twice |
| wrong | another value than without the fault, after the next run or in a run that claimed success |
| left | temporary files that remain after the next run |
| crashed | ended with neither success nor a declared error (but for the kill itself) |

The works are small and complete: `qualiclip score` into a file, `iqa-harness run` on a dataset with opinions and on
generated ladders, `iqa-harness data check` of a packed dataset that is downloaded and unpacked, `qualiclip weights
fetch`, and `qualiclip train`, which the next run continues with `--resume`. If a damaged file is refused,
the file that the message names is deleted before the next run.
"""


def table(rows: Mapping[tuple[str, str], Outcome], reasons: Mapping[str, str], seed: int) -> str:
    """The page.

    Args:
        rows: Fault and work to what came of the trials.
        reasons: Fault to why it could not be made here; empty where it could.
        seed: Of the draws.
    """
    lines = [[fault, work, *(getattr(outcome, name) for name in COLUMNS)] for (fault, work), outcome in rows.items()]
    total = sum(rows.values(), Outcome())
    lines.append(["**all**", "", *(getattr(total, name) for name in COLUMNS)])
    preface = PREFACE.format(
        trials=_range([outcome.trials for outcome in rows.values()]),
        seed=seed,
        date=time.strftime("%Y-%m-%d"),
        device=f"{os.cpu_count()} CPU cores ({device_text(torch.device('cpu'))}), {platform.system()}",
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )
    left_out = [f"- {fault}: not run, it {reason}" for fault, reason in reasons.items() if reason]
    grid = tabulate(lines, headers=["fault", "work", *COLUMNS], tablefmt="pipe")
    return "\n".join([preface, grid, "", *left_out]).rstrip() + "\n"


def _range(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{high} trials" if low == high else f"{low} to {high} trials"
