"""Run the faults and write the table: ``python -m tests.faults [--trials 50] [--seconds S] [--only WORD]``.

With ``--seconds`` as many trials are made as fit, every fault in turn, and nothing is written. Exit code 1: something
was lost, doubled, wrong or left behind; what was seen stands on standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.faults import FAULTS, why_not
from tests.faults.report import table
from tests.faults.server import ROOT
from tests.faults.trials import Outcome, repeat, session


def main() -> int:
    """Run, write or print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="of every fault and work (default: 50)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--only", default="", help="faults whose name has this word in it")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "reliability.md")
    options = parser.parse_args()
    reasons = {name: why_not(fault) for name, (fault, _) in FAULTS.items()}
    chosen = [name for name in FAULTS if options.only in name and not reasons[name]]
    rows = {(name, work): Outcome() for name in chosen for work in FAULTS[name][1]}
    until = time.monotonic() + (options.seconds or float("inf"))
    with tempfile.TemporaryDirectory() as folder, session(Path(folder)) as opened:
        for number in range(options.trials):
            for name, work in rows:
                if time.monotonic() < until:
                    outcome = repeat(opened, work, FAULTS[name][0], [number], options.seed)
                    rows[name, work] += outcome
                    print("".join(f"{name}: {text}\n" for text in outcome.seen), end="", file=sys.stderr, flush=True)
    text = table({(name, work.name): outcome for (name, work), outcome in rows.items()}, reasons, options.seed)
    if options.seconds is None and not options.only:
        options.output.write_text(text, encoding="utf-8")
    print(text)
    return int(not all(outcome.clean for outcome in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
