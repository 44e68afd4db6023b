"""Every name of the Python reference has an example, and every example prints what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qualiclip_plugin.distortions.contact_sheet import degrade_file
from qualiclip_plugin.weights import load_model
from tests.support.harness_data import write_metadata

REFERENCE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?$", flags=re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def shown() -> Iterator[tuple[str, Any]]:
    """Functions, classes and methods of the page by their full names."""
    for name, members in ENTRY.findall(REFERENCE):
        module, _, last = name.rpartition(".")
        found = getattr(import_module(module), last)
        yield name, found
        if inspect.isclass(found):
            own = members.split(", ") if members else [key for key in vars(found) if not key.startswith("_")]
            functions = {key: inspect.getattr_static(found, key) for key in own}
            yield from ((f"{name}.{key}", made) for key, made in functions.items() if inspect.isfunction(made))


SHOWN = dict(shown())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> Path:
    """What the page says lies in the folder of its examples."""
    made = tmp_path_factory.mktemp("reference")
    Image.fromarray(photographs[0][:192, 100:356]).save(made / "photo.png")
    (made / "scored").mkdir()
    for level in range(8):
        kind, level_of_kind = ("gaussian_blur", level) if level < 4 else ("white_noise", level - 3)
        degrade_file(made / "photo.png", kind, level_of_kind, output=made / "scored" / f"{level}.png")
    opinions = (9, 7, 5, 3, 8, 6, 4, 2)
    write_metadata(made / "scored", [{"file_name": f"{i}.png", "mos": mos} for i, mos in enumerate(opinions)])
    return made


def test_the_page_shows_what_it_lists() -> None:
    assert len(ENTRY.findall(REFERENCE)) == REFERENCE.count(":::") > 15


@pytest.mark.parametrize("name", SHOWN)
def test_examples_print_what_they_show(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(folder)
    if name.endswith(".export_onnx"):
        # The same export takes many seconds: it is made once for all tests.
        made = request.getfixturevalue("lite_onnx")
        monkeypatch.setattr(name, lambda _, path: shutil.copyfile(made, path) and None)
    monkeypatch.setattr("qualiclip_plugin.weights.load_model", _shared_model)
    # A docstring that is inherited is another name's.
    examples = doctest.DocTestParser().get_doctest(SHOWN[name].__doc__ or "", {}, name, None, None)
    assert examples.examples, f"{name}: its docstring needs an example"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=report.append)
    assert not report, "".join(report)


@cache
def _shared_model(weights: str) -> Any:
    return load_model(weights)
