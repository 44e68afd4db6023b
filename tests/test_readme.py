"""What the README and its pictures' page say is what the programs do."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT = json.loads((ROOT / "results" / "front" / "figures.json").read_text(encoding="utf-8"))
RENEW = "python results/front/picture.py"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "results" / "front" / "picture.py"))


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", text)]


def test_the_quickstart_prints_what_the_readme_shows(program: dict[str, Any]) -> None:
    shown, printed = FRONT["quickstart"], program["quickstart"]()
    assert re.sub(r"\d+\.\d+", "N", printed) == re.sub(r"\d+\.\d+", "N", shown), RENEW
    # The fourth decimal, the last one that is printed, may be rounded otherwise on another processor.
    assert numbers(printed) == pytest.approx(numbers(shown), abs=1.5e-4), RENEW
    for arguments in program["QUICKSTART"]:
        assert f"\nqualiclip {' '.join(arguments)}\n" in README


def test_blocks_of_documents_are_those_of_the_figures(program: dict[str, Any]) -> None:
    for name, (document, text) in program["blocks"](FRONT).items():
        assert f"<!-- {name} -->\n{text}\n<!-- end -->" in (ROOT / document).read_text(encoding="utf-8"), RENEW


def test_the_first_python_lines_run_without_a_network() -> None:
    first, *rest = python_blocks(README)
    names: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), names)  # noqa: S102 - it is the document that is tested
    assert names["scores"].shape == (2, 1)
    assert "sharp_image" in names["attributes"]
    for block in rest:
        compile(block, "README.md", "exec")


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / "CITATION.cff"], ids=lambda path: path.name
)
def test_files_of_the_repository_are_whole_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
