"""Undecoded images of ``datasets``, read in order where they are a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_plugin.utils.errors import DatasetError, QualiCLIPError, first_line

if TYPE_CHECKING:
    import datasets


def image_bytes(image: Mapping[str, Any]) -> bytes:
    """Content of an undecoded image of ``datasets``: ``{"bytes": ..., "path": ...}``."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


@dataclass(frozen=True)
class Files:
    """Undecoded images that are files, read like rows of ``datasets``, whose paths have to be UTF-8.

    Attributes:
        paths: In the order of the rows.
    """

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice) -> dict[str, Any]:
        if isinstance(index, slice):
            return {"image": [{"bytes": None, "path": path} for path in self.paths[index]]}
        return {"image": {"bytes": None, "path": self.paths[index]}}

    def select(self, kept: Sequence[int]) -> Files:
        """The files at some places."""
        return Files([self.paths[index] for index in kept])


def packed_bytes(image: Mapping[str, Any] | None, where: str) -> bytes:
    """Content of an undecoded image that a row of a stream holds itself.

    Raises:
        DatasetError: It holds none; a path in it is one on the machine of whoever reads it, and is not followed.
    """
    if not image or image["bytes"] is None:
        raise DatasetError(f"{where}: no image in the row itself")
    content: bytes = image["bytes"]
    return content


@dataclass(frozen=True)
class Stream:
    """Undecoded images that are read in order.

    Attributes:
        rows: Column ``image``.
        positions: Places in the stream of the images that count, ascending.
    """

    rows: datasets.IterableDataset
    positions: Sequence[int]
    origin: str

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, kept: Sequence[int]) -> Stream:
        """The same stream with fewer images that count."""
        return Stream(self.rows, [self.positions[index] for index in kept], self.origin)

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Index and bytes of the images at ``indices``, in the order of the stream.

        Raises:
            DatasetError: The stream breaks off or ends too early.
        """
        wanted = {self.positions[index]: index for index in indices}
        first = min(wanted, default=0)
        for position, row in enumerate(unbroken(self.rows.skip(first), self.origin), first):
            if position in wanted:
                yield wanted.pop(position), packed_bytes(row["image"], f"{self.origin}, row {position}")
            if not wanted:
                return
        if wanted:
            raise DatasetError(f"{self.origin}: ends before image {min(wanted)}")


def unbroken(rows: Iterable[dict[str, Any]], origin: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream.

    Raises:
        DatasetError: It breaks off; says after how many images.
    """
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except QualiCLIPError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{origin}: broke off after {count} images: {first_line(error)}; run again to go on"
        ) from error
