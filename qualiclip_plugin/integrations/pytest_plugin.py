"""A pytest fixture for other projects' tests: ``assert_quality(image, metric="qualiclip-lite", min=0.5)``.

pytest loads this file in every project of an environment, so it imports next to nothing. What the fixture calls is
found by an entry point when a test asks for it: this package knows no package that is built on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import pytest

GROUP = "qualiclip_plugin.fixtures"
"""Entry points of functions that a fixture of the same name gives."""


@pytest.fixture
def assert_quality() -> Callable[..., float]:
    """The function ``harness.check.quality.check_quality``: ``AssertionError`` for an image worse than asked for."""
    (entry,) = entry_points(group=GROUP, name="assert_quality")
    return load(entry)


def load(entry: EntryPoint) -> Callable[..., float]:
    """What an entry point names.

    Raises:
        pytest.UsageError: Another package of its name hides the one that it means.
    """
    package = entry.module.partition(".")[0]
    try:
        function: Callable[..., float] = entry.load()
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(package):
            raise
        other = sys.modules[package].__spec__
        places = (other.submodule_search_locations or [str(other.origin)]) if other else []
        raise pytest.UsageError(
            f"{entry.name} needs the package {package!r} that comes with qualiclip-plugin, but another one of that "
            f"name hides it: {', '.join(places)}. Rename that one, or keep its folder out of "
            "sys.path: start `pytest --import-mode=importlib` rather than `python -m pytest`"
        ) from error
    return function
