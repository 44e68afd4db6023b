"""Expressions and paths of others are short texts with bounded cost."""

from __future__ import annotations

import pytest

from harness.data import patterns
from harness.data.patterns import Pattern, fields
from qualiclip_plugin.utils.errors import ConfigError


def test_a_pattern_matches_whole_texts_and_names_their_parts() -> None:
    pattern = Pattern(r"i(?P<reference>\d+)_(?P<level>\d)\.png", "key")
    assert pattern.match("i12_3.png") == {"reference": "12", "level": "3"}
    assert pattern.match("i12_3.png.bak") is None


def test_a_pattern_that_takes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MATCHING_SECONDS", 0.05)
    with pytest.raises(ConfigError, match=r"key .* takes more than 0\.05 s to match"):
        Pattern(r"(a|aa)+$c", "key").match("a" * 200)


def test_all_rows_share_the_time_of_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Pattern(r"(a|aa)+b", "key")
    pattern.left = 0.5
    pattern.match("a" * 16)
    assert 0 < pattern.left < 0.5
    with pytest.raises(ConfigError, match="to match"):
        pattern.match("a" * 40)


@pytest.mark.parametrize("text", ["(a", "*", "(?P<x>a)(?P<x", "[z-a]"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"key .* is no regular expression"):
        Pattern(text, "key")


def test_a_path_names_columns_and_nothing_else() -> None:
    assert fields("**/{folder}/{name of image}.png") == ("folder", "name of image")
    for path in ("{", "}", "{}", "{0.a}", "{a[0]}", "{a!r}", "{a:>1000000000}", "{a:{b}}"):
        with pytest.raises(ConfigError, match="brace"):
            fields(path)
