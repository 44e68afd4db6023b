"""A gallery of scored pictures, worst first: one folder of static files, no server, no request to anywhere.

The page reads its table from a script file, because a page that was opened from a disk may not fetch. The script of
the page draws only the tiles in view and asks only for their thumbnails, so that 100,000 pictures stay fluid.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from qualiclip_plugin.gallery.thumbnails import LARGE, DrawMap, Read, write_pictures
from qualiclip_plugin.scoring.table import attribute_columns
from qualiclip_plugin.utils.errors import ConfigError, disk_errors
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.utils.page_folder import check_page_folder, page_folder
from qualiclip_plugin.utils.progress import track
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from qualiclip_plugin.models.qualiclip import QualiCLIP

TEMPLATES = Path(__file__).parent / "templates"
KIND, MADE_BY = "gallery", "qualiclip gallery"
LARGE_PICTURES = 1000
"""Pictures, from the worst on, that can be looked at closely; all of them would be as large as the photographs."""
DIGITS = 5


def write_gallery(
    scores: pd.DataFrame,
    output: str | os.PathLike[str],
    *,
    files: Sequence[str | os.PathLike[str]] | None = None,
    read: Read = read_image,
    large: int = LARGE_PICTURES,
    workers: int = 2,
    model: QualiCLIP | None = None,
) -> Path:
    """Write a gallery and return its page.

    Args:
        scores: A table of scores, see :func:`qualiclip_plugin.scoring.table.to_frame`.
        output: Folder of the gallery; an earlier gallery there is replaced, a folder with anything else refused.
        files: Where the picture of each row is; by default its ``path``.
        read: From a path to pixels, with the choices that the scorer was given.
        large: How many pictures, from the worst on, can be looked at closely.
        model: What scored them, in evaluation mode: pictures that can be looked at closely get its quality map.

    Raises:
        ConfigError: ``output`` holds something else or cannot be written, or ``scores`` has no rows.
    """
    target = Path(output)
    ordered, paths = _worst_first(scores, files)
    with disk_errors(target, ConfigError), page_folder(target, KIND, MADE_BY) as folder:
        # Those without a score are at the end, and have no map.
        maps = 0 if model is None else min(large, int(ordered["score"].notna().sum()))
        draw_map = None if model is None else map_drawer(model, LARGE[0])
        written = write_pictures(folder, paths, read, large, workers, draw_map, maps)
        lacking = list(track(written, "thumbnails", len(paths)))
        (folder / "data.js").write_text(f"const TABLE = {_script(page_data(ordered, lacking, large, maps))};\n")
        for template in TEMPLATES.iterdir():
            shutil.copyfile(template, folder / template.name)
    return target / "index.html"


check_gallery = partial(check_page_folder, kind=KIND, made_by=MADE_BY)
"""Check before any work that a gallery can be written to a folder; raises :class:`ConfigError`."""


def map_drawer(model: QualiCLIP, side: int) -> DrawMap:
    """From pixels to a picture of their quality map, at most ``side`` pixels wide and high.

    Maps are made one at a time, since each uses all cores.
    """
    from qualiclip_plugin.scoring.map_files import overlay, score_windows

    one = threading.Lock()

    def draw(pixels: Tensor) -> NDArray[np.uint8]:
        with one:
            return overlay(score_windows(pixels, model), side)

    return draw


def page_data(scores: pd.DataFrame, lacking: Sequence[str | None], large: int, maps: int = 0) -> dict[str, Any]:
    """What the page knows of each row, in their order.

    Args:
        scores: The table of scores in the order of the gallery.
        lacking: Why a row has no picture; ``None`` where it has one.

    Returns:
        ``paths``: without what all begin with, ``prefix``; ``shown``: the path for people where it differs, by row;
        ``measures``: names and values of the score and of each attribute; ``sizes``: width and height; ``errors``,
        ``notes``, ``lacking``: texts by row; ``large``, ``maps``; ``key``: the table's own, for marks
        that a browser keeps.
    """
    paths = [str(path) for path in scores["path"]]
    # Up to a slash; paths may also be addresses, or absolute and relative.
    same = os.path.commonprefix(paths)  # noqa: RUF071 (characters are meant)
    prefix = same[: same.rfind("/") + 1]
    names = ["score", *attribute_columns(scores)]
    data = {
        "prefix": prefix,
        "paths": [path[len(prefix) :] for path in paths],
        "shown": {row: printable(path) for row, path in enumerate(paths) if printable(path) != path},
        "measures": [{"name": printable(name), "values": _numbers(scores[name], paths)} for name in names],
        "sizes": [_size(width, height) for width, height in zip(scores["width"], scores["height"], strict=True)],
        "errors": _texts(scores["error"], paths),
        "notes": _texts(scores["note"], paths),
        "lacking": _texts(lacking, paths),
        "large": large,
        "maps": maps,
    }
    return {**data, "key": hashlib.sha256(_script(data).encode()).hexdigest()[:16]}


def _worst_first(
    scores: pd.DataFrame, files: Sequence[str | os.PathLike[str]] | None
) -> tuple[pd.DataFrame, list[str | os.PathLike[str]]]:
    """The rows by rising score, those without one at the end, and their files."""
    if scores.empty:
        raise ConfigError("a gallery needs a picture: the table of scores has no rows")
    ordered = scores.reset_index(drop=True).sort_values("score", kind="stable", na_position="last")
    source = list(scores["path"]) if files is None else list(files)
    return ordered, [source[row] for row in ordered.index]


def _numbers(values: Iterable[Any], paths: Sequence[str]) -> list[float | None]:
    numbers = [None if pd.isna(value) else round(float(value), DIGITS) for value in values]
    for path, number in zip(paths, numbers, strict=True):
        if number is not None and not math.isfinite(number):
            raise ConfigError(f"{printable(path)}: has the score {number}, which no picture can have")
    return numbers


def _size(width: Any, height: Any) -> list[int] | None:
    return None if pd.isna(width) or pd.isna(height) else [int(width), int(height)]


def _texts(texts: Iterable[Any], paths: Sequence[str]) -> dict[int, str]:
    """The texts that are there by row, without the name of the file that they begin with."""
    return {
        row: printable(str(text)).removeprefix(f"{printable(path)}: ")
        for row, (text, path) in enumerate(zip(texts, paths, strict=True))
        if not pd.isna(text)
    }


def _script(data: dict[str, Any]) -> str:
    """JSON in ASCII, which is also a literal of JavaScript, and ends no element of HTML."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
