"""The commands as a user calls them, in this process: importing torch anew takes longer than most tests."""

from __future__ import annotations

import io
import os
import sys

import pytest

import harness.cli
import qualiclip_plugin.cli

MAINS = {"qualiclip": qualiclip_plugin.cli.main, "iqa-harness": harness.cli.main}


def run_main(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: object) -> object:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        MAINS[program]()
    return caught.value.code


class Unwritable(io.StringIO):
    """A standard output on a full disk, or whose reader is gone.

    Args:
        reason: Number of the system's error.
    """

    def __init__(self, reason: int) -> None:
        super().__init__()
        self.reason = reason

    def write(self, text: str) -> int:
        raise OSError(self.reason, os.strerror(self.reason))
