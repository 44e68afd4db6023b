"""Labels and undecoded images of a dataset, from wherever its specification says, through ``datasets``.

Images stay undecoded bytes: they are hashed, and read by :func:`qualiclip_plugin.utils.images.read_image`, whose
handling of rotation is declared, while ``datasets`` would apply it without being asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.labels import label_table
from harness.data.metadata import check_rows
from harness.data.rows import Files
from harness.data.spec import DatasetSpec
from harness.data.unpack import check_parquet
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.errors import DatasetError, ImageError, first_line
from qualiclip_plugin.utils.metadata import find_metadata, local_rows
from qualiclip_plugin.utils.shown import portable
from qualiclip_plugin.utils.tables import Placed

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from harness.data.rows import Stream


@dataclass(frozen=True)
class Source:
    """What was found.

    Attributes:
        labels: One row per image that is there, with the columns of ``LABELS``; a stream's have ``image_hash`` too.
        rows: The undecoded images in the same order; column ``image``.
        missing: Rows whose image is not there: where the row stands, and which image.
        unlisted: Images in a folder that no row of its metadata names.
    """

    labels: pd.DataFrame
    rows: datasets.Dataset | Files | Stream
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def load_local(path: Path, spec: DatasetSpec) -> Source:
    """Load an ``imagefolder`` with metadata, or a CSV or JSON-lines file of any name beside its images."""
    folder = path if path.is_dir() else path.parent
    files = find_metadata(path) if path.is_dir() else [path]
    rows = check_rows(path if len(files) > 1 else files[0], local_rows(folder, files, spec.columns, spec.asked), spec)
    found = from_files(rows, folder, spec)
    return replace(found, unlisted=_unlisted(folder, rows, spec)) if path.is_dir() else found


def _unlisted(folder: Path, rows: Sequence[Placed], spec: DatasetSpec) -> tuple[str, ...]:
    from qualiclip_plugin.utils.images import images_in

    listed = {os.path.normpath(str(row[spec.columns.image])) for _, row in rows}
    try:
        there = [path.relative_to(folder) for path in images_in([folder])]
    except ImageError:  # none at all: every row is missing its own, which is said there
        return ()
    return tuple(portable(path.as_posix()) for path in there if str(path) not in listed)


def load_parquet(path: Path, spec: DatasetSpec) -> Source:
    """Load a Parquet file with an image column, as ``datasets`` writes it; paths in it are relative to it."""
    import datasets

    check_parquet(path)
    try:
        with _without_progress():
            rows = datasets.load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
    except Exception as error:
        raise DatasetError(f"{path}: `datasets` cannot load it: {error}") from error
    return from_rows(rows, spec, str(path), [path.parent.absolute()])


def load_hub(spec: DatasetSpec) -> Source:
    """Load a Hub repository at its revision; with ``HF_HUB_OFFLINE=1`` only from the cache."""
    return from_rows(hub_rows(spec), spec, _hub_name(spec), _hub_folders(spec))


def hub_rows(spec: DatasetSpec, **options: Any) -> Any:
    """The rows of a Hub repository, cached or (``streaming=True``) as they come.

    Raises:
        DatasetError: It cannot be obtained.
    """
    import datasets

    hub = spec.hub
    if hub is None:
        raise DatasetError(f"{spec.name}: not on the Hub")
    revision = hub.revision or None
    try:
        rows = datasets.load_dataset(
            hub.repository, hub.config or None, split=hub.split, revision=revision, **options
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(f"{spec.name}: {_hub_name(spec)} cannot be loaded: {reason}") from error
    # Without a network `datasets` takes whatever revision its cache has.
    cached = [file["filename"] for file in getattr(rows, "cache_files", ())]
    if spec.pinned and any(hub.revision not in path for path in cached):
        raise DatasetError(f"{spec.name}: {_hub_name(spec)} is cached, but not at revision {hub.revision}")
    return rows


def from_rows(rows: datasets.Dataset, spec: DatasetSpec, where: str, folders: Sequence[Path] = ()) -> Source:
    """Labels and images of rows that hold both.

    Args:
        where: Where the rows come from, for messages.
        folders: Where files may lie that rows name instead of holding an image.

    Raises:
        DatasetError: A column is not there or holds no images, a label is invalid, or a row names a file elsewhere.
    """
    import pyarrow.compute as pc

    kept = label_columns(spec, rows.column_names, where)
    try:
        images = image_column(rows, spec)
    except Exception as error:
        raise DatasetError(f"{where}: column {spec.columns.image} holds no images: {first_line(error)}") from error
    contents, paths = (pc.struct_field(images.data.column("image"), part) for part in ("bytes", "path"))
    places = paths.to_pylist()
    table = rows.select_columns(kept).to_pandas().to_dict("records") if kept else [{} for _ in places]
    checked = check_rows(where, named_rows(table, places, spec, where), spec)
    there = [
        packed or bool(place and os.path.isfile(_own_file(place, folders, origin)))
        for packed, place, (origin, _) in zip(contents.is_valid().to_pylist(), places, checked, strict=True)
    ]
    missing = [
        f"{origin}: image {place or row[spec.columns.image]!r} is missing"
        for (origin, row), place, present in zip(checked, places, there, strict=True)
        if not present
    ]
    if missing:
        images = images.select(np.flatnonzero(there))
    if contents.null_count:
        images = images.with_transform(partial(_with_own_files, folders))
    labels = [row for (_, row), present in zip(checked, there, strict=True) if present]
    return Source(label_table(labels, spec), images, tuple(missing))


def _own_file(place: str, folders: Sequence[Path], where: str) -> Path:
    """The file that a row names, in one of the folders that it may name files of."""
    for folder in folders:
        if Path(place).is_relative_to(folder):
            return inside(folder, str(Path(place).relative_to(folder)), error=DatasetError, where=where)
    if not folders:
        raise DatasetError(f"{where}: names the file {place!r} and holds no image")
    return inside(folders[0], place, error=DatasetError, where=where)


def _with_own_files(folders: Sequence[Path], batch: Mapping[str, Any]) -> dict[str, Any]:
    def placed(image: dict[str, Any]) -> dict[str, Any]:
        return image if image["bytes"] is not None else {**image, "path": str(_own_file(image["path"], folders, ""))}

    return {"image": [placed(image) for image in batch["image"]]}


def from_files(rows: Sequence[Placed], folder: Path, spec: DatasetSpec, places: Sequence[str] = ()) -> Source:
    """Labels and images of rows that name files.

    Args:
        places: Path of every row's image in the folder; empty: the file names.

    Raises:
        DatasetError: A path leads out of the folder.
    """
    places = places or [str(row[spec.columns.image]) for _, row in rows]
    root = folder.resolve()
    paths = [
        str(inside(root, place, error=DatasetError, where=where))
        for (where, _), place in zip(rows, places, strict=True)
    ]
    there = [os.path.isfile(path) for path in paths]
    found = [path for path, present in zip(paths, there, strict=True) if present]
    missing = [
        f"{where}: image {place!r} is missing"
        for (where, _), place, present in zip(rows, places, there, strict=True)
        if not present
    ]
    kept = [row for (_, row), present in zip(rows, there, strict=True) if present]
    return Source(label_table(kept, spec), Files(found), tuple(missing))


def label_columns(spec: DatasetSpec, found: Sequence[str], where: str) -> list[str]:
    """The columns of a table that labels are read from.

    Raises:
        DatasetError: One of them, or the image, is not there.
    """
    derived = spec.derive.pattern if spec.derive else ""
    columns = [*vars(spec.columns).values(), *spec.full_reference]
    wanted = [name for name in columns if name and f"(?P<{name}>" not in derived]
    absent = [name for name in wanted if name not in found]
    if absent:
        raise DatasetError(f"{where}: no column {', '.join(absent)}; found {', '.join(found)}")
    return [name for name in wanted if name != spec.columns.image]


def image_column(rows: Any, spec: DatasetSpec) -> Any:
    """Only the undecoded images, as the column ``image`` of a dataset or a stream."""
    import datasets

    images = rows.select_columns([spec.columns.image])
    if spec.columns.image != "image":
        images = images.rename_column(spec.columns.image, "image")
    return images.cast_column("image", datasets.Image(decode=False))


def named_rows(
    table: Sequence[Mapping[str, Any]], paths: Sequence[str | None], spec: DatasetSpec, where: str
) -> Iterator[Placed]:
    """Rows with the names of their images. Rows of the Hub often have none; the position then is the name."""
    names = [Path(path).name if path else "" for path in paths]
    unique = len(set(names)) == len(names) and all(names)
    for number, row in enumerate(table):
        yield f"{where}, row {number}", {**row, spec.columns.image: names[number] if unique else f"{number:06d}"}


def _hub_folders(spec: DatasetSpec) -> list[Path]:
    """Where the files of a repository are kept; its rows may name these and no others of this machine."""
    import datasets
    from huggingface_hub import constants

    repository = spec.hub.repository.replace("/", "--") if spec.hub else ""
    return [Path(constants.HF_HUB_CACHE, f"datasets--{repository}"), Path(datasets.config.DOWNLOADED_DATASETS_PATH)]


def _hub_name(spec: DatasetSpec) -> str:
    return f"Hub {spec.hub.repository}" if spec.hub else ""


@contextmanager
def _without_progress() -> Iterator[None]:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()
