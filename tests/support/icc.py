"""Small ICC profiles, made from numbers: matrix and curve, grey, and tables of the old kind (lut8)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence

import numpy as np

Rgb = Sequence[Sequence[float]]
DISPLAY_P3: Rgb = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
ADOBE_RGB: Rgb = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
"""Rows X, Y, Z under D50; columns red, green, blue."""
_D50 = (0.9642, 1.0, 0.8249)


def matrix_profile(matrix: Rgb, gamma: float, name: str) -> bytes:
    """An RGB display with one gamma."""
    columns = {f"{letter}XYZ": _xyz([row[at] for row in matrix]) for at, letter in enumerate("rgb")}
    curves = {f"{letter}TRC": _curve(gamma) for letter in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", name, {"wtpt": _xyz(_D50), **columns, **curves})


def grey_profile(gamma: float, name: str) -> bytes:
    """A grey display."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", name, {"wtpt": _xyz(_D50), "kTRC": _curve(gamma)})


def table_profile(space: bytes, channels: int, lab: Callable[..., Sequence[float]], name: str) -> bytes:
    """A device whose colours are CIELAB by ``lab`` of its channels in [0, 1], at the corners of their cube."""
    nodes = [lab(*corner) for corner in itertools.product((0, 1), repeat=channels)]
    table = bytes(round(v) for L, a, b in nodes for v in (L * 2.55, a + 128, b + 128))
    head = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0])
    identity = b"".join(struct.pack(">i", 65536 * (at % 4 == 0)) for at in range(9))
    ramp = bytes(range(256))
    return _profile(
        b"prtr",
        space,
        b"Lab ",
        name,
        {"wtpt": _xyz(_D50), "A2B0": head + identity + ramp * channels + table + ramp * 3},
    )


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _profile(kind: bytes, space: bytes, connection: bytes, name: str, tags: dict[str, bytes]) -> bytes:
    text = name.encode("ascii") + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    table, body = b"", b""
    start = 128 + 4 + 12 * (len(tags) + 1)
    for tag, content in {"desc": described, **tags}.items():
        table += struct.pack(">4sII", tag.encode(), start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"none", 0x02100000, kind, space, connection, bytes(12), b"acsp"
    )
    illuminant = b"".join(struct.pack(">i", round(v * 65536)) for v in _D50)
    header = header + bytes(28) + illuminant
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags) + 1) + table + body


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB in [0, 1]."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055)
