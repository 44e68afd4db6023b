"""Every promise of SECURITY.md names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "SECURITY.md"


def promises() -> list[tuple[str, str]]:
    """Promise and tests of every row of the tables."""
    text = PAGE.read_text(encoding="utf-8").partition("## Not promised")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in text.splitlines() if line.startswith("|")]
    return [(row[0].strip(), row[-1]) for row in rows if row[0].strip() not in ("promise", "---")]


def test_every_section_holds_promises() -> None:
    assert len(promises()) > 15


@pytest.mark.parametrize(("promise", "held_by"), promises(), ids=lambda text: text[:30])
def test_a_promise_is_held_by_tests_that_are_there(promise: str, held_by: str) -> None:
    found = re.findall(r"`([\w/]+\.py)::(test_\w+)`", held_by)
    assert found, promise
    for file, test in found:
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), (file, test)
