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
class Stream:
    """Undecoded images that are read in order.

    Attributes:
        rows: Column ``image``.
        positions: Places in the stream of the images that count, ascending.
        origin: Where they come from, for messages.
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
                yield wanted.pop(position), image_bytes(row["image"])
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
