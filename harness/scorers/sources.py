"""Which Python files a scorer of the user's is made of: its own and what it imports, installed packages left out."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}
_OURS = tuple(Path(__file__).parents[2] / name for name in ("harness", "qualiclip_plugin"))


def own_files(path: Path, roots: Iterable[Path] | None = None) -> list[Path]:
    """A Python file and all files that it imports, directly or not, without installed packages.

    Imports are found in the text, wherever they stand in it; what a program puts together at run time is not.

    Args:
        path: Of the module or the script.
        roots: Folders in which imported modules are looked for; none: the current one and those of ``sys.path``.

    Returns:
        In an order that does not depend on where the files lie.
    """
    places = [Path.cwd(), *map(Path, sys.path)] if roots is None else list(roots)
    places = list(dict.fromkeys(place.resolve() for place in places if place.is_dir() and not _installed(place)))
    found, waiting = set[Path](), [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name, level in _imports(file):
            folders = [file.parents[level - 1]] if level else places
            waiting += (place for place in _files(name, folders) if not _installed(place))
    return sorted(found, key=lambda file: file.parts[::-1])


def _imports(file: Path) -> Iterator[tuple[str, int]]:
    """Names that a file imports, and by how many dots each is relative to the file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # for another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            yield from ((".".join(filter(None, (node.module, alias.name))), node.level) for alias in node.names)


def _files(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    """The files of a module and of the packages around it, in the first folder that has them."""
    parts = name.split(".")
    for folder in folders:
        paths = [folder.joinpath(*parts[: end + 1]) for end in range(len(parts))]
        places = [place for path in paths for place in (path.with_name(f"{path.name}.py"), path / "__init__.py")]
        if there := [place.resolve() for place in places if place.is_file()]:
            yield from there
            return


def _installed(path: Path) -> bool:
    path = path.resolve()
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    return bool(_INSTALLED & set(path.parts)) or path.is_relative_to(standard) or any(map(path.is_relative_to, _OURS))
