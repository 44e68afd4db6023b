"""What a package index shows of this project."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_the_readme_of_the_package_leads_nowhere_into_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    text, whole = given["long_description"], (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "![" not in text
    # Code and the texts of links are still there.
    assert text.count("```") == whole.count("```")
    assert "docs/training.md explains" in " ".join(text.split())
