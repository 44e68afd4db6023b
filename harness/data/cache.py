"""The cache of generated and downloaded data between runs, and the check that nothing in it was altered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.environment import user_cache
from qualiclip_plugin.utils.errors import DatasetError
from qualiclip_plugin.utils.json_yaml import read_document, sealed
from qualiclip_plugin.utils.shown import portable

MANIFEST = ".manifest.json"
"""Hashes of all files of a folder, in the folder."""

_SCHEMA = {
    "type": "object",
    "required": ["files"],
    "properties": {"files": {"type": "object", "additionalProperties": {"type": "string"}}},
}


def cache_folder(*parts: str) -> Path:
    """A folder under ``$QUALICLIP_CACHE``, else under the user's cache folder; not created here.

    Raises:
        DatasetError: A part leads out of it.
    """
    root = os.environ.get("QUALICLIP_CACHE")
    if not root:
        root = str(user_cache() / "qualiclip")
    return inside(root, *parts, error=DatasetError)


def write_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Keep the SHA-256 of the files in a folder, by relative path as :func:`portable` writes it."""
    (folder / MANIFEST).write_text(json.dumps(sealed({"files": dict(hashes)})), encoding="utf-8")


def check_cached(found: Mapping[str, str]) -> None:
    """Compare files with those that were put into the cache; files elsewhere are not checked.

    Args:
        found: Paths, and the SHA-256 of what is there now.

    Raises:
        DatasetError: A file or the manifest of its folder was altered.
    """
    folders: dict[Path, tuple[Path, dict[str, str]]] = {}
    for path, digest in found.items():
        place = Path(path).resolve()
        if place.parent not in folders:
            folders[place.parent] = _manifest_above(place)
        folder, known = folders[place.parent]
        if known and known.get(portable(place.relative_to(folder).as_posix())) != digest:
            raise DatasetError(f"{path}: it was altered in the cache; delete {folder} to have it made again")


def _manifest_above(place: Path) -> tuple[Path, dict[str, str]]:
    root = cache_folder().resolve()
    within = [parent for parent in place.parents if parent.is_relative_to(root)]
    folder = next((parent for parent in within if (parent / MANIFEST).exists()), None)
    if folder is None:
        return place.parent, {}
    try:
        content = read_document(folder / MANIFEST, _SCHEMA, DatasetError, "a manifest")
    except DatasetError as error:
        raise DatasetError(f"{error}; delete {folder} to have it made again") from error
    return folder, dict(content["files"])
