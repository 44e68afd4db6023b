"""``qualiclip bench score | scale``."""

from __future__ import annotations

import typer

from qualiclip_plugin.bench.scale import scale_command
from qualiclip_plugin.bench.score import score_command

bench_app = typer.Typer(help="What scoring costs on this machine.", no_args_is_help=True)
bench_app.command("score")(score_command)
bench_app.command("scale")(scale_command)
