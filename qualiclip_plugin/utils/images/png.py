"""A PNG without the chunks that say nothing of its pixels.

Pillow refuses a whole picture for a long text, a long profile, or a bad checksum of its resolution. What a decoder
need not understand is left out before Pillow sees it; the profile is read here, within a limit.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from typing import IO, NamedTuple

from qualiclip_plugin.utils.images.colour import MAX_PROFILE_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""Chunks beside the critical ones that decide pixels: transparency and animation."""
_READ = (b"iCCP", b"eXIf", b"gAMA", b"sRGB", b"cICP")
"""Chunks that are read here, where their checksum is right."""
_MOST_READ = 2**22
_SRGB_GAMMA = 45455
_SRGB_CODE_POINTS = b"\x01\x0d"
"""Primaries of BT.709, transfer of sRGB, as H.273 numbers them."""


class Png(NamedTuple):
    """What is left of a PNG."""

    file: IO[bytes]
    profile: bytes | None


def without_ballast(file: IO[bytes], notes: list[str]) -> Png:
    """Leave out what says nothing of the pixels; ``notes`` receives what speaks of them and is not followed."""
    read, kept, dropped = dict[bytes, bytes](), [(0, len(SIGNATURE))], False
    size = file.seek(0, io.SEEK_END)
    at, kind = len(SIGNATURE), b""
    while at < size and kind != b"IEND":
        file.seek(at)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        end = at + 12 + length
        body = _checked(file, kind, length) if kind in _READ and end <= size else None
        if kind in _READ and body is None:
            notes.append(f"{kind.decode()} chunk ignored: too long, or its checksum is wrong")
        elif body is not None and kind != b"eXIf":
            read.setdefault(kind, body)
        # One that ends behind the file is Pillow's to report.
        if not kind[:1].islower() or kind in _KEPT or end > size or (kind == b"eXIf" and body is not None):
            kept.append((at, min(end, size)))
        else:
            dropped = True
        at = end
    profile = _profile(read[b"iCCP"]) if b"iCCP" in read else None
    _note_colours(read, notes)
    return Png(_joined(file, kept) if dropped else file, profile)


def _joined(file: IO[bytes], ranges: Iterable[tuple[int, int]]) -> IO[bytes]:
    joined = io.BytesIO()
    for start, end in ranges:
        file.seek(start)
        joined.write(file.read(end - start))
    return joined


def _checked(file: IO[bytes], kind: bytes, length: int) -> bytes | None:
    if length > _MOST_READ:
        return None
    body = file.read(length)
    return body if file.read(4) == zlib.crc32(kind + body).to_bytes(4, "big") else None


def _profile(body: bytes) -> bytes:
    """The profile of an iCCP chunk; what cannot be unpacked is handed on, and is no profile."""
    _, _, packed = body.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return packed


def _note_colours(read: dict[bytes, bytes], notes: list[str]) -> None:
    if (code_points := read.get(b"cICP", b"")[:2]) and code_points != _SRGB_CODE_POINTS:
        notes.append(f"colours read as sRGB, not as primaries {code_points[0]} and transfer {code_points[-1]} (cICP)")
    gamma = int.from_bytes(read.get(b"gAMA", b""), "big")
    if gamma and abs(gamma - _SRGB_GAMMA) > 1000 and not read.keys() & {b"sRGB", b"iCCP", b"cICP"}:
        notes.append(f"colours read as sRGB, not with the gamma of {gamma / 1e5:g} that the file declares")
