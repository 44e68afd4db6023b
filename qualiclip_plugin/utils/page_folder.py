"""A folder of static pages: written completely or not at all, and only if no other files are lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qualiclip_plugin.utils.atomic import atomic_folder
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.json_yaml import read_json
from qualiclip_plugin.utils.shown import printable


@contextmanager
def page_folder(target: Path, kind: str, made_by: str) -> Iterator[Path]:
    """Fill a temporary folder that takes its place when the block ends without an error.

    Args:
        target: The final folder; an earlier one of the same kind there is replaced.
        kind: What it is, for messages and for the name of the list of its files: ``"report"``.

    Raises:
        ConfigError: See :func:`check_page_folder`.
        OSError: The place cannot be written or the disk is full; nothing is left behind.
    """
    check_page_folder(target, kind, made_by)
    with atomic_folder(target.absolute(), replace=True) as partial:
        yield partial
        manifest = {"made_by": made_by, "files": _files(partial)}
        (partial / f"{kind}.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def check_page_folder(target: Path, kind: str, made_by: str) -> None:
    """Check that pages can be written without a loss of other files.

    Raises:
        ConfigError: The target is a file, or holds a file that no earlier page folder of this kind lists.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{printable(target)}: is a file, a folder is needed")
    known = _earlier(target / f"{kind}.json", made_by)
    strangers = [name for name in _files(target) if name not in known]
    if strangers:
        first = printable(strangers[0])
        raise ConfigError(f"{printable(target)}: holds {first}, which is no part of a {kind}; choose another folder")


def _earlier(manifest: Path, made_by: str) -> set[str]:
    """The files that were written here before; none if there is no list of them."""
    try:
        content = read_json(manifest, ConfigError, "a list of pages")
    except ConfigError:
        return set()
    files = content.get("files")
    return (
        {manifest.name, *map(str, files)} if content.get("made_by") == made_by and isinstance(files, list) else set()
    )


def _files(folder: Path) -> list[str]:
    """All files below a folder, by their paths there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
