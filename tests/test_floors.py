"""The floors of both packages: who may import whom. Every import is read, also those inside functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

PLUGIN = (
    "__init__",  # the version, and a hook that imports nothing yet
    "utils",
    "distortions",
    "models",
    "runtimes",
    "weights",
    "scoring",
    "gallery",
    "training",
    "integrations",
    "doctor",
    "cli",
    "__main__",
)
HARNESS = (
    "statistics",
    "data",
    "scorers",
    "results",
    "leaderboard",
    "run",
    "report",
    "check",
    "listing",
    "api",
    "__init__",  # what users import: harness.evaluate, harness.compare
    "cli",
    "__main__",
)
FLOORS = [f"qualiclip_plugin.{room}" for room in PLUGIN] + [f"harness.{room}" for room in HARNESS]
"""Every room, from the ground up. A room imports from those below it alone, so there is no circle, and nothing of the
harness is imported by the plugin."""


def test_every_import_goes_down() -> None:
    up = [
        f"{where}: {source} imports {target}"
        for where, source, target in _imports()
        if source != target and FLOORS.index(target) >= FLOORS.index(source)
    ]
    assert not up, "\n".join(up)


def test_what_is_installed_imports_no_test_library() -> None:
    used = {
        path.relative_to(ROOT).as_posix()
        for package in ("qualiclip_plugin", "harness")
        for path in (ROOT / package).rglob("*.py")
        if re.search(
            r"^\s*(import|from) (unittest|pytest|hypothesis|tests)\b", path.read_text(encoding="utf-8"), re.M
        )
    }
    assert used == {"qualiclip_plugin/integrations/pytest_plugin.py"}  # which pytest itself imports


def test_an_import_that_goes_up_is_found() -> None:
    source = "def later():\n    from harness.data import spec\n    import qualiclip_plugin.cli as cli\n"
    assert list(_targets(ast.parse(source))) == [(2, "harness.data"), (3, "qualiclip_plugin.cli")]
    assert FLOORS.index("harness.data") > FLOORS.index("qualiclip_plugin.cli")
    assert [*_targets(ast.parse("from qualiclip_plugin import __version__, weights"))] == [
        (1, "qualiclip_plugin.__init__"),
        (1, "qualiclip_plugin.weights"),
    ]


def _imports() -> Iterator[tuple[str, str, str]]:
    """Where an import stands, its room and the room it reaches."""
    for package in ("qualiclip_plugin", "harness"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT)
            for line, target in _targets(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{place}:{line}", f"{package}.{place.with_suffix('').parts[1]}", target


def _targets(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for package, _, rest in (name.partition(".") for name in names):
            if package in ("qualiclip_plugin", "harness"):
                room = f"{package}.{rest.partition('.')[0]}"
                yield node.lineno, room if room in FLOORS else f"{package}.__init__"
