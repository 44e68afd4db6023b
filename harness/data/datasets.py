"""From a specification to images and their labels, through Hugging Face ``datasets``.

Images stay undecoded bytes: they are hashed, and read by :func:`qualiclip_plugin.images.read_image`, whose
handling of rotation is declared, while ``datasets`` would apply it without being asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.cache import check_cached
from harness.data.labels import label_table, labels_hash, undecoded
from harness.data.metadata import check_metadata, check_rows, find_metadata, local_spec
from harness.data.specs import DatasetSpec, catalogue, find_spec
from harness.statistics import MIN_IMAGES
from qualiclip_plugin.errors import DatasetError
from qualiclip_plugin.files import sha256_file

if TYPE_CHECKING:
    import datasets
    import pandas as pd

_CHUNK = 64


@dataclass(frozen=True)
class ImageSet:
    """An opened dataset.

    Attributes:
        spec: Where it comes from.
        table: One row per image: the columns of ``LABELS`` and ``image_hash`` (SHA-256 of the file's bytes).
        rows: The undecoded images, in the order of the table; column ``image``.
        complete: Whether it has as many images as the specification declares.
    """

    spec: DatasetSpec
    table: pd.DataFrame
    rows: datasets.Dataset
    complete: bool = True

    def __len__(self) -> int:
        return len(self.table)

    @property
    def reading(self) -> dict[str, Any]:
        """How bytes become pixels; part of what a score is stored under."""
        return {"exif_applied": self.spec.exif, "background": "white", "shorter_side": self.spec.resize or "native"}

    @property
    def labels_hash(self) -> str:
        """See :func:`harness.data.labels.labels_hash`."""
        return labels_hash(self.table)


def open_dataset(
    name: str, specs: Mapping[str, DatasetSpec] | None = None, *, allow_partial: bool = False
) -> ImageSet:
    """Open a dataset by name, or a local folder.

    Args:
        name: Name of a specification; a folder, a CSV or a Parquet file; ``NAME=PATH`` to name it in tables.
        specs: Known specifications; none: those that ship.
        allow_partial: Accept another number of images than declared; the result is marked.

    Raises:
        DatasetError: Unknown, not to be had, or invalid; the message names the row.
    """
    specs = catalogue() if specs is None else specs
    label, _, folder = name.rpartition("=")
    if folder not in specs and Path(folder).exists():
        spec = local_spec(Path(folder), label)
    else:
        spec = find_spec(name, specs)
    return open_spec(spec, allow_partial=allow_partial)


def open_spec(spec: DatasetSpec, *, allow_partial: bool = False) -> ImageSet:
    """Open the dataset that a specification describes; see :func:`open_dataset`."""
    labels, rows = _load(spec)
    if spec.subset:
        kept = [index for index, split in enumerate(labels["split"]) if split == spec.subset]
        labels, rows = labels.iloc[kept].reset_index(drop=True), rows.select(kept)
    if len(labels) < MIN_IMAGES:
        raise DatasetError(f"{spec.name}: {len(labels)} images, at least {MIN_IMAGES} are needed")
    complete = spec.images in (0, len(labels))
    if not complete and not allow_partial:
        raise DatasetError(
            f"{spec.name}: {len(labels)} images found, {spec.images} declared; --allow-partial goes on all the same"
        )
    labels["image_hash"] = image_hashes(rows)
    return ImageSet(spec, labels, rows, complete)


def _load(spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    if spec.generated:
        from harness.data.ladders import generate

        folder = generate(spec)
        metadata = find_metadata(folder)
        check_cached({str(metadata): sha256_file(metadata)})
        return load_folder(folder, spec)
    if spec.archive:
        from harness.data.archives import open_archive

        return open_archive(spec)
    if spec.hub:
        return load_hub(spec)
    path = Path(spec.folder)
    if path.suffix == ".parquet":
        return load_parquet(path, spec)
    return load_table(path, spec) if path.is_file() else load_folder(path, spec)


def load_hub(spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    """Load a Hub repository at its revision; with ``HF_HUB_OFFLINE=1`` from the cache alone.

    Raises:
        DatasetError: It cannot be had, or lacks a column.
    """
    import datasets

    hub = spec.hub
    if hub is None:
        raise DatasetError(f"{spec.name}: not on the Hub")
    try:
        rows = datasets.load_dataset(
            hub.repository, hub.config or None, split=hub.split, revision=hub.revision or None
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(f"{spec.name}: Hub {hub.repository} cannot be loaded: {reason}") from error
    return _from_rows(rows, spec, f"Hub {hub.repository}")


def load_parquet(path: Path, spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    """Load a Parquet file with an image column, as ``datasets`` writes it."""
    import datasets

    try:
        with _without_progress():
            rows = datasets.load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
    except Exception as error:
        raise DatasetError(f"{path}: `datasets` cannot load it: {error}") from error
    return _from_rows(rows, spec, str(path))


def load_table(path: Path, spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    """Load a CSV or JSON-lines file of any name; file names are relative to it."""
    checked = check_metadata(path, spec)
    labels = label_table(checked, spec)
    return labels, undecoded([str(path.parent.resolve() / name) for name in labels["file_name"]])


def _from_rows(rows: datasets.Dataset, spec: DatasetSpec, where: str) -> tuple[pd.DataFrame, datasets.Dataset]:
    import datasets

    columns = spec.columns
    absent = [name for name in vars(columns).values() if name and name not in rows.column_names]
    if absent:
        raise DatasetError(f"{where}: no column {', '.join(absent)}; found {', '.join(rows.column_names)}")
    images = rows.select_columns([columns.image])
    if columns.image != "image":
        images = images.rename_column(columns.image, "image")
    images = images.cast_column("image", datasets.Image(decode=False))
    # Rows of the Hub often have no file names of their own; the position then is the name.
    names = [Path(path).name if path else "" for path in _paths(images)]
    unique = len(set(names)) == len(names) and all(names)
    kept = [name for label, name in vars(columns).items() if name and label != "image"]
    table = rows.select_columns(kept).to_pandas().to_dict("records") if kept else [{} for _ in names]
    lines = (
        (number, {**row, columns.image: names[number] if unique else f"{number:06d}"})
        for number, row in enumerate(table)
    )
    return label_table(check_rows(where, lines, spec), spec), images


def load_folder(folder: Path, spec: DatasetSpec) -> tuple[pd.DataFrame, datasets.Dataset]:
    """Check a folder's metadata and load it as an ``imagefolder`` with undecoded images.

    Returns:
        Labels with the columns ``LABELS``, and the images in the same order, column ``image``.

    Raises:
        DatasetError: See :func:`harness.data.metadata.check_metadata`.
    """
    import datasets

    checked = check_metadata(find_metadata(folder), spec)
    metadata = find_metadata(folder)
    with _without_progress():
        try:
            # The metadata names every image; listing them as well takes seconds for ten thousand.
            rows = datasets.load_dataset("imagefolder", data_files={"rows": str(metadata)}, split="rows")
            if len(rows) != len(checked):
                # Releases before 4 give only the images that are listed.
                files = {"rows": str(folder.resolve() / "**")}
                rows = datasets.load_dataset("imagefolder", data_files=files, split="rows")
        except Exception as error:
            raise DatasetError(f"{folder}: `datasets` cannot load it: {error}") from error
    rows = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    labels = label_table(checked, spec)
    for name, path in zip(labels["file_name"], _paths(rows), strict=True):
        if not Path(path).match(name):
            raise DatasetError(f"{folder}: `datasets` gives {path} where the metadata has {name}")
    return labels, rows


def image_bytes(image: Mapping[str, Any]) -> bytes:
    """Content of an undecoded image of ``datasets``: ``{"bytes": ..., "path": ...}``."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def image_hashes(rows: datasets.Dataset) -> list[str]:
    """SHA-256 of the content of every undecoded image.

    Raises:
        DatasetError: An image was altered since it was put into this project's cache.
    """

    def hashes(start: int) -> list[tuple[str, str]]:
        images = rows[start : start + _CHUNK]["image"]
        contents = (hashlib.sha256(image_bytes(image)).hexdigest() for image in images)
        return [
            (image["path"] if image["bytes"] is None else "", found)
            for image, found in zip(images, contents, strict=True)
        ]

    with ThreadPoolExecutor(4) as pool:
        found = [pair for part in pool.map(hashes, range(0, len(rows), _CHUNK)) for pair in part]
    check_cached({path: digest for path, digest in found if path})
    return [digest for _, digest in found]


def _paths(rows: datasets.Dataset) -> list[str]:
    return rows.data.column("image").combine_chunks().field("path").to_pylist()


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
