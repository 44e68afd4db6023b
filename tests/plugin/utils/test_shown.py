"""Names from elsewhere stay text in every medium."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.data.inspect import Inspection, report
from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.scoring.table import plain_table, to_frame
from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError, first_line
from qualiclip_plugin.utils.shown import in_html, in_latex, in_markdown, printable
from qualiclip_plugin.weights.checks import COLUMNS

HOSTILE = "x\n# Forged \x1b[31m\r\u202e<b>|$\\input{x}\\&"


@pytest.mark.parametrize("escape", [printable, in_markdown, in_latex, in_html])
def test_a_name_stays_on_its_line_in_every_medium(escape) -> None:
    assert escape(HOSTILE).isprintable()
    assert escape("photo.png") == escape(escape("photo.png")) == "photo.png"


def test_a_name_begins_nothing_in_markdown_and_latex() -> None:
    assert in_markdown("# heading") == "\\# heading"
    assert in_markdown("- item") == "\\- item"
    assert in_markdown("-0.25") == "-0.25"
    assert in_latex("[1pt] *") == "{[}1pt] {*}"


def test_an_error_shows_only_the_line_breaks_of_its_author() -> None:
    error = ConfigError(f"no file {HOSTILE}", "second line")
    assert str(error).splitlines() == [f"no file {printable(HOSTILE)}", "second line"]
    assert str(QualiCLIPError(error)) == printable(str(error))
    assert first_line(OSError("\x1b[2J")) == "\\x1b[2J"


def test_names_in_a_dataset_stay_in_their_lines() -> None:
    splits = Counter({HOSTILE: 2})
    unreadable = {HOSTILE: f"broken {HOSTILE}"}
    text = report(
        Inspection(HOSTILE, 2, 0, (HOSTILE,), [[HOSTILE]], unreadable, Counter(), splits, [(HOSTILE, "b", 3)], None)
    )
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 12


def test_names_of_attributes_stay_in_their_column() -> None:
    frame = to_frame([ScoredImage("a.png", 0.5, {HOSTILE: 0.25})], [HOSTILE])
    header, row = plain_table(frame).splitlines()
    assert header.split("\t")[2] == printable(HOSTILE)
    assert len(row.split("\t")) == len(frame.columns)


def test_an_attribute_has_no_name_of_another_column() -> None:
    assert tuple(to_frame([]).columns) == COLUMNS
