"""Run the faults and show the table: ``python -m tests.faults [--trials 50] [--seconds S] [--only WORD]``.

With ``--seconds`` as many trials are made as fit, every fault in turn. ``--output results/reliability.md`` keeps the
table, which states how many there were. Exit code 1: something was lost, doubled, wrong or left behind; what was seen
stands on standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.faults import FAULTS, why_not
from tests.faults.report import table
from tests.faults.trials import Outcome, repeat, session


def main() -> int:
    """Run, print and keep the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="of every fault and work (default: 50)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--only", default="", help="faults whose name has this word in it")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--output", type=Path, help="where the table is kept")
    options = parser.parse_args()
    reasons = {name: why_not(fault) for name, (fault, _) in FAULTS.items()}
    chosen = [name for name in FAULTS if options.only in name and not reasons[name]]
    works = {(name, work.name): work for name in chosen for work in FAULTS[name][1]}
    rows = dict.fromkeys(works, Outcome())
    until = time.monotonic() + (options.seconds or float("inf"))
    with tempfile.TemporaryDirectory() as folder, session(Path(folder)) as opened:
        for number in range(options.trials):
            for (name, label), work in works.items():
                if time.monotonic() < until:
                    outcome = repeat(opened, work, FAULTS[name][0], [number], options.seed)
                    rows[name, label] += outcome
                    print("".join(f"{name}: {text}\n" for text in outcome.seen), end="", file=sys.stderr, flush=True)
    text = table(rows, reasons, options.seed)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)
    return int(not all(outcome.clean for outcome in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
