"""From a name to an opened dataset: images, labels, hashes, and whether all of it is there."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import resizing
from harness.data.archives import open_archive
from harness.data.cache import check_cached
from harness.data.labels import labels_hash
from harness.data.ladders import generate
from harness.data.metadata import local_spec
from harness.data.rows import image_bytes
from harness.data.sources import Source, load_hub, load_local, load_parquet
from harness.data.spec import DatasetSpec, catalogue, find_spec
from harness.data.streams import open_stream
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.errors import DatasetError, MachineError, out_of_room
from qualiclip_plugin.utils.metadata import find_metadata
from qualiclip_plugin.utils.statistics import MIN_IMAGES

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from harness.data.rows import Files, Stream

_CHUNK = 64


@dataclass(frozen=True)
class ImageSet:
    """An opened dataset.

    Attributes:
        table: One row per image: the columns of ``LABELS`` and ``image_hash`` (SHA-256 of the file's bytes).
        rows: The undecoded images, in the order of the table; column ``image``. A stream can only be read in order.
        complete: Whether it has as many images as the specification declares, and none is missing.
        unlisted: Images in a folder that no row of its metadata names; they are not scored.
        limit: So many images, the first ones, were taken of it for a quick try; 0: all.
    """

    spec: DatasetSpec
    table: pd.DataFrame
    rows: datasets.Dataset | Files | Stream
    complete: bool = True
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    limit: int = 0

    def first(self, limit: int) -> ImageSet:
        """Its first ``limit`` images; itself where it has no more, or where the limit is 0."""
        return dataclasses.replace(self, table=self.table.head(limit), limit=limit) if 0 < limit < len(self) else self

    def __len__(self) -> int:
        return len(self.table)

    @property
    def reading(self) -> dict[str, Any]:
        """How bytes become pixels; part of what a score is stored under."""
        how = {
            "exif_applied": self.spec.exif,
            "icc_applied": self.spec.icc,
            "background": "white",
            "shorter_side": self.spec.resize or "native",
        }
        if self.spec.resize:
            how["resizing"] = resizing.VERSION
            how["torchvision"] = metadata.version("torchvision")
        return how

    @cached_property
    def labels_hash(self) -> str:
        """See :func:`harness.data.labels.labels_hash`."""
        return labels_hash(self.table)


def open_dataset(
    name: str,
    specs: Mapping[str, DatasetSpec] | None = None,
    *,
    allow_partial: bool = False,
    stream: bool = False,
) -> ImageSet:
    """Open a dataset by name, or a local folder.

    Args:
        name: Name of a specification; a folder, a CSV or a Parquet file; ``NAME=PATH`` to name it in tables, unless
            the whole is a path that exists; ``@lower_better=true`` or ``false`` behind a path: the direction of dmos.
        specs: Known specifications; none: those that ship.
        allow_partial: Accept missing images and another number of them than declared; the result is marked.
        stream: Read a remote dataset as it comes, without keeping it, whatever its specification says.

    Raises:
        DatasetError: Unknown, not available, or invalid; the message names the row.
    """
    specs = catalogue() if specs is None else specs
    spec = _named(name, specs)
    if stream and (spec.hub or spec.archive):
        spec = dataclasses.replace(spec, stream=True)
    return open_spec(spec, allow_partial=allow_partial)


def open_datasets(names: Iterable[str], specs: Mapping[str, DatasetSpec], **options: bool) -> list[ImageSet]:
    """Open several datasets, each once; see :func:`open_dataset`.

    Raises:
        DatasetError: Two have the same name, under which their results would replace each other.
    """
    opened: dict[str, tuple[str, ImageSet]] = {}
    for name in dict.fromkeys(names):
        images = open_dataset(name, specs, **options)
        if known := opened.get(images.spec.name):
            raise DatasetError(f"{known[0]} and {name} are both named {images.spec.name!r}; give one as NAME=FOLDER")
        opened[images.spec.name] = (name, images)
    return [images for _, images in opened.values()]


def open_spec(spec: DatasetSpec, *, allow_partial: bool = False) -> ImageSet:
    """Open the dataset that a specification describes; see :func:`open_dataset`."""
    source = _load(spec)
    labels, rows = source.labels, source.rows
    if spec.subset:
        kept = [index for index, split in enumerate(labels["split"]) if split == spec.subset]
        labels, rows = labels.iloc[kept].reset_index(drop=True), rows.select(kept)
    missing = source.missing
    complete = _check_complete(spec, len(labels), missing, allow_partial)
    if "image_hash" not in labels:
        labels["image_hash"], unreadable = image_hashes(rows)
        if unreadable:
            missing += tuple(
                f"image {labels['file_name'][at]!r} is missing, it {why}" for at, why in unreadable.items()
            )
            kept = [index for index in range(len(labels)) if index not in unreadable]
            labels, rows = labels.iloc[kept].reset_index(drop=True), rows.select(kept)
            complete = _check_complete(spec, len(labels), missing, allow_partial)
    return ImageSet(spec, labels, rows, complete, missing, source.unlisted)


def _check_complete(spec: DatasetSpec, found: int, missing: tuple[str, ...], allow_partial: bool) -> bool:
    complete = not missing and spec.images in (0, found)
    if not complete and not allow_partial:
        raise DatasetError(f"{_what_lacks(spec, found, missing)}; --allow-partial goes on all the same")
    if found < MIN_IMAGES:
        lacking = f": {_what_lacks(spec, found, missing)}" if missing else ""
        raise DatasetError(f"{spec.name}: {found} images, at least {MIN_IMAGES} are needed{lacking}")
    return complete


def _load(spec: DatasetSpec) -> Source:
    if spec.stream:
        return open_stream(spec)
    if spec.generated:
        folder = generate(spec)
        check_cached({str(path): sha256_file(path) for path in find_metadata(folder)})
        return load_local(folder, spec)
    if spec.archive:
        return open_archive(spec)
    if spec.hub:
        return load_hub(spec)
    path = Path(spec.folder)
    return load_parquet(path, spec) if path.suffix == ".parquet" else load_local(path, spec)


def image_hashes(rows: Any) -> tuple[list[str], dict[int, str]]:
    """SHA-256 of the content of every undecoded image, and why some, by their place, cannot be read.

    Raises:
        DatasetError: An image was altered since it was put into this project's cache.
        MachineError: This machine has no room to read them.
    """
    unreadable: dict[int, str] = {}

    def digest(place: int, image: Mapping[str, Any]) -> str:
        try:
            return hashlib.sha256(image_bytes(image)).hexdigest()
        except OSError as error:
            if out_of_room(error):
                raise MachineError(f"{image['path']}: {error.strerror}") from error
            unreadable[place] = f"cannot be read: {error.strerror or error}"
            return ""

    def hashes(start: int) -> list[tuple[str, str]]:
        images = rows[start : start + _CHUNK]["image"]
        return [
            (image["path"] if image["bytes"] is None else "", digest(place, image))
            for place, image in enumerate(images, start)
        ]

    with ThreadPoolExecutor(4) as pool:
        found = [pair for part in pool.map(hashes, range(0, len(rows), _CHUNK)) for pair in part]
    check_cached({path: digest for path, digest in found if path and digest})
    return [digest for _, digest in found], dict(sorted(unreadable.items()))


def _named(name: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec:
    if name not in specs:
        # The sign between name and path may occur in a path as well: split=test is a usual folder.
        declared = None if Path(name).exists() else re.fullmatch(r"(.+)@lower_better=(true|false)", name)
        given = declared[1] if declared else name
        label, _, path = ("", "", given) if Path(given).exists() else given.partition("=")
        if path and Path(path).exists():
            return local_spec(Path(path), label, declared[2] == "true" if declared else None)
    return find_spec(name, specs)


def _what_lacks(spec: DatasetSpec, found: int, missing: tuple[str, ...]) -> str:
    if missing:
        return f"{missing[0]} ({len(missing)} of {found + len(missing)} images of {spec.name} are)"
    return f"{spec.name}: {found} images found, {spec.images} declared"
