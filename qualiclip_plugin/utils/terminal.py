"""The end of every command: its own exit code, or one line that says what is wrong."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from qualiclip_plugin import __version__
from qualiclip_plugin.utils.errors import QualiCLIPError, first_line, out_of_memory
from qualiclip_plugin.utils.process_settings import settle_process
from qualiclip_plugin.utils.shown import printable


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"qualiclip-plugin {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]
"""An option of every command line."""
USAGE = 2
"""Exit code of a command that could not do its work."""


def run(app: typer.Typer, name: str) -> None:
    """Run a command line; what the user or the machine can mend is one line on standard error and exit code 2."""
    settle_process()
    for stream in ("stdout", "stderr"):
        # Closed by the caller: the next file that is opened would get its number, and libraries print there.
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process runs)
        # A name outside the terminal's encoding must not end a run.
        if isinstance(getattr(sys, stream), io.TextIOWrapper):
            getattr(sys, stream).reconfigure(errors="backslashreplace")
    try:
        app(prog_name=name)
        sys.stdout.flush()
        return
    except QualiCLIPError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        from qualiclip_plugin.utils.extras import advice  # reads requirements, which no other start needs

        if (install := advice(error)) is None:
            raise
        reason = install
    except Exception as error:
        if out_of_memory(error):
            reason = f"not enough memory ({first_line(error)})"
        elif isinstance(error, OSError) and error.errno is not None:
            reason = printable(f"{error.filename or 'output'}: {error.strerror}")
        else:
            raise
    typer.echo(f"error: {reason}", err=True)
    sys.exit(USAGE)
