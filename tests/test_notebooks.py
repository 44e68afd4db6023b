"""The notebooks of the documents run from their first cell to the last, and print as many lines as they show."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("".join(cell["source"]), path.name, "exec"), names)  # noqa: S102 - it is what is tested
            shown = "".join(line for output in cell["outputs"] for line in output.get("text", []))
            assert len(printed.getvalue().splitlines()) == len(shown.splitlines()), "".join(cell["source"])


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
