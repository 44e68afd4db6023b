"""What scores cost on this machine: ``python -m tests.benchmarks score | scale``."""

from __future__ import annotations

import typer

from qualiclip_plugin.utils import terminal
from tests.benchmarks.scale import scale_command
from tests.benchmarks.score import score_command

app = typer.Typer(no_args_is_help=True)
app.command("score")(score_command)
app.command("scale")(scale_command)

if __name__ == "__main__":
    terminal.run(app, "python -m tests.benchmarks")
