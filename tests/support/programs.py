"""Programs of ``results/``, imported as their command would find them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

RESULTS = Path(__file__).parents[2] / "results"


@contextmanager
def program(folder: str, name: str) -> Iterator[ModuleType]:
    """Import ``results/FOLDER/NAME.py``; its neighbours, which share their names with others, are forgotten after."""
    place = str(RESULTS / folder)
    sys.path.insert(0, place)
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(place)
        for neighbour in (RESULTS / folder).glob("*.py"):
            sys.modules.pop(neighbour.stem, None)
