"""From paths to a list of image files."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images.formats import FORMATS, SUFFIXES
from qualiclip_plugin.utils.shown import printable


def images_in(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that paths stand for.

    A file is listed, with any name. A folder gives the files in it, at any depth, whose suffix is in ``SUFFIXES``. A
    pattern (``*``, ``?``, ``[...]``, ``**``) is expanded as in a shell. An existing path is never a pattern. Names
    that start with a dot are left out of folders, and of patterns without the dot. Links are followed; each folder is
    visited once, so a loop of links ends. A folder that cannot be listed is returned itself, and reading it reports
    the error.

    Returns:
        Sorted by name, each directory entry once.

    Raises:
        ImageError: A path that does not exist, a pattern without a match, a folder without an image.

    Examples:
        >>> from qualiclip_plugin.utils.images import images_in
        >>> [path.name for path in images_in(["photo.png", "scored"])][:2]
        ['photo.png', '0.png']
    """
    real_parent: dict[Path, str] = {}
    unique: dict[tuple[str, str], Path] = {}
    found = [Path(file) for path in paths for file in _expand(os.fspath(path))]
    if not found:
        raise ImageError("no image, folder or pattern given")
    for file in sorted(found, key=str):
        parent = real_parent.setdefault(file.parent, os.path.realpath(file.parent))
        unique.setdefault((parent, file.name), file)
    return list(unique.values())


def _expand(path: str) -> list[Path]:
    if os.path.lexists(path):
        matches = [Path(path)]
    elif glob.has_magic(path):
        matches = _matches(path)
        if not matches:
            raise ImageError(f"{printable(path)}: the pattern matches nothing")
    else:
        raise ImageError(f"{printable(path)}: no such file or folder")
    folders = [match for match in matches if os.path.isdir(match)]
    files = [match for match in matches if not os.path.isdir(match)]
    for folder in folders:
        files.extend(_walk(folder))
    if not files:
        read = " ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise ImageError(f"{printable(path)}: no image in this folder (read are {read})")
    return files


def _matches(pattern: str) -> list[Path]:
    # pathlib's ** does not follow links to folders, where glob's would run round a loop of them.
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:first]), parts[first:]
    hidden = any(part.startswith(".") for part in rest)
    return [
        match
        for match in root.glob(os.path.join(*rest))
        if hidden or not any(part.startswith(".") for part in match.relative_to(root).parts)
    ]


def _walk(folder: Path) -> Iterator[Path]:
    # Links wait until all real folders are done, so that a file found both ways keeps its real path.
    real, links, seen = deque([folder]), deque[Path](), set[tuple[int, int]]()
    while real or links:
        current = (real or links).popleft()
        try:
            status = os.stat(current)
            entries = (
                []
                if (status.st_dev, status.st_ino) in seen
                else sorted(os.scandir(current), key=lambda entry: entry.name)
            )
        except OSError:
            yield current
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if os.path.isdir(path):
                (links if path.is_symlink() else real).append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path
