"""Kinds of files that decoders stumble over: read right, or refused with what they are; every decision is noted."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images import DecodedImage, decode_image, formats, read_image
from tests.support.image_seeds import picture

RGB = np.asarray(picture(48, 40))
GREY = RGB[..., 0]
ALPHA = np.full(GREY.shape, 255, np.uint8)


def wide(samples: np.ndarray) -> np.ndarray:
    """Sixteen bits for eight."""
    return samples.astype(np.uint16) * 257


def tiff(samples: np.ndarray, photometric: str = "rgb", **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


def pages(*written: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for samples, options in written:
            writer.write(samples, metadata=None, **options)
    return buffer.getvalue()


def seen(image: DecodedImage) -> np.ndarray:
    return image.pixels.permute(1, 2, 0).numpy()


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(data)
    return str(caught.value)


# Samples of TIFF

PLANAR = {"planarconfig": "separate"}
COLOUR: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "planar-16": (wide(RGB).transpose(2, 0, 1), PLANAR),
    "planar-16-tiles": (wide(RGB).transpose(2, 0, 1), PLANAR | {"tile": (16, 32)}),
    "planar-16-deflate": (wide(RGB).transpose(2, 0, 1), PLANAR | {"compression": "zlib"}),
    "planar-16-alpha": (
        wide(np.dstack([RGB, ALPHA])).transpose(2, 0, 1), PLANAR | {"extrasamples": ["unassalpha"]},
    ),
    "planar-8": (RGB.transpose(2, 0, 1), PLANAR),
    "float": ((RGB / 255).astype(np.float32), {}),
    "half": ((RGB / 255).astype(np.float16), {}),
    "int16": (RGB.astype(np.int16) * 128, {}),
    "uint32": (wide(RGB).astype(np.uint32), {}),
    "big": (RGB, {"bigtiff": True}),
}  # fmt: skip
GREYS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "int16": (GREY.astype(np.int16) * 128, {}),
    "white-is-zero-16": (wide(255 - GREY), {"photometric": "miniswhite"}),
    "white-is-zero-float": ((1 - GREY / 255).astype(np.float32), {"photometric": "miniswhite"}),
    "alpha-16": (wide(np.dstack([GREY, ALPHA])), {"extrasamples": ["unassalpha"]}),
    "premultiplied": (np.dstack([GREY, ALPHA]), {"extrasamples": ["assocalpha"]}),
}


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("kind", COLOUR)
def test_colour_samples_of_tiff(kind: str, byteorder: str) -> None:
    samples, options = COLOUR[kind]
    data = tiff(samples, byteorder=byteorder, **options)
    if (kind, byteorder) == ("big", ">"):
        assert "BigTIFF with the high byte first" in refusal(data)
        return
    image = decode_image(data)
    assert np.array_equal(seen(image), RGB)
    assert len(image.notes) == (samples.dtype != np.uint8)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("kind", GREYS)
def test_grey_samples_of_tiff(kind: str, byteorder: str) -> None:
    samples, options = GREYS[kind]
    image = decode_image(tiff(samples, byteorder=byteorder, **{"photometric": "minisblack"} | options))
    assert np.array_equal(seen(image), np.repeat(GREY[..., None], 3, -1))


def test_planar_ink_of_sixteen_bits_is_that_of_eight() -> None:
    ink = np.asarray(Image.fromarray(RGB).convert("CMYK")).transpose(2, 0, 1)
    options = {"photometric": "separated", **PLANAR}
    assert np.array_equal(seen(decode_image(tiff(wide(ink), **options))), seen(decode_image(tiff(ink, **options))))


def test_the_orientation_and_transparency_of_such_a_tiff() -> None:
    samples = wide(np.dstack([RGB, np.where(GREY > 128, 255, 0).astype(np.uint8)])).transpose(2, 0, 1)
    extra = [(274, 3, 1, 6)]
    image = decode_image(tiff(samples, extrasamples=["unassalpha"], extratags=extra, **PLANAR), background=(1, 2, 3))
    expected = np.where(GREY[..., None] > 128, RGB, np.array([1, 2, 3]))
    assert np.array_equal(seen(image), expected.transpose(1, 0, 2)[:, ::-1])
    assert len(image.notes) == 3


def test_cielab_is_read_with_eight_bits() -> None:
    # The primaries, white and black of sRGB in CIELAB under D50.
    lab = np.array([[[54.29, 80.81, 69.89], [87.82, -79.27, 80.99], [29.57, 68.30, -112.03], [100, 0, 0], [0, 0, 0]]])
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]
    stored = np.round(np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], -1)).astype(np.uint8)
    image = decode_image(tiff(stored, "cielab"))
    off = np.abs(seen(image)[0].astype(int) - colours)
    assert off.mean() < 6  # eight bits are coarse at the corners of sRGB
    assert off.max() < 25
    assert image.notes == ("CIELAB converted to sRGB",)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tiff(wide(RGB), "cielab"), "16-bit CIELAB, 3 samples"),
        (tiff(RGB / 255), "64-bit floating-point RGB"),
        (tiff((RGB / 255).astype(np.float32), compression="zlib"), "compression tiff_adobe_deflate"),
    ],
)
def test_a_whole_tiff_that_is_not_read_is_not_called_damaged(data: bytes, kind: str) -> None:
    message = refusal(data)
    assert "a TIFF of a kind that is not read" in message
    assert kind in message
    assert "damaged" not in message


def test_a_truncated_planar_tiff_is_an_error() -> None:
    data = tiff(wide(RGB).transpose(2, 0, 1), **PLANAR)
    assert "damaged or truncated" in refusal(data[: len(data) // 2])
    assert "damaged or truncated" in refusal(encoded(Image.fromarray(RGB), "TIFF")[:60])


def test_libtiff_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = bytearray(tiff(RGB, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.dataoffsets[0]
    data[at : at + 200] = bytes(200)
    (tmp_path / "broken.tif").write_bytes(data)
    with pytest.raises(ImageError, match=r"broken\.tif: damaged"):
        read_image(tmp_path / "broken.tif")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags["SamplesPerPixel"].valueoffset
    data[at : at + 2] = b"\xff\xff"
    assert "a TIFF of a kind that is not read" in refusal(bytes(data))
    assert capfd.readouterr().err == ""


# Samples that use a part of their type


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("samples", [RGB, GREY])
def test_few_bits_in_many_are_refused(samples: np.ndarray, bits: int) -> None:
    small = samples.astype(np.uint16) << (bits - 8)
    assert "8, 10 or 12 bits are stored in 16" in refusal(tiff(small, "rgb" if samples is RGB else "minisblack"))
    if samples is GREY:
        assert "8, 10 or 12 bits are stored in 16" in refusal(tiff(small.astype(np.uint32), "minisblack"))
        assert "8, 10 or 12 bits are stored in 16" in refusal(encoded(Image.fromarray(small), "PNG"))


def test_a_quarter_of_the_range_is_read_with_a_warning() -> None:
    image = decode_image(tiff(RGB.astype(np.uint16) << 6))
    assert np.array_equal(seen(image), RGB >> 2)
    assert "warning: no sample reaches a quarter of the white of its type" in image.notes[1]


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# Pages

SMALL = {"photometric": "rgb", "subfiletype": 1}
LARGE = {"photometric": "rgb", "subfiletype": 0}
SENSOR = {"photometric": "cfa", "extratags": [(33421, 3, 2, (2, 2)), (33422, 1, 4, (0, 1, 1, 2))]}


@pytest.mark.parametrize("below", [False, True])
def test_the_full_resolution_page_is_read_where_the_first_is_a_thumbnail(below: bool, tmp_path: Path) -> None:
    data = pages((RGB[::4, ::4], SMALL | {"subifds": 1 if below else 0}), (RGB, LARGE))
    (tmp_path / "a.tif").write_bytes(data)
    for source in (data, tmp_path / "a.tif"):
        image = decode_image(source)
        assert np.array_equal(seen(image), RGB)
        assert image.notes == ("the full-resolution page, not the first one, which is a thumbnail or mask",)


def test_a_raw_photograph_is_not_its_thumbnail() -> None:
    data = pages((RGB[::4, ::4], SMALL | {"subifds": 1}), (wide(GREY), SENSOR))
    assert "not read: a raw photograph; develop it" in refusal(data)


# PNG


def png_with(*chunks: tuple[bytes, bytes], checksum: int = 0, behind: bool = False) -> bytes:
    """A PNG of ``RGB`` with more chunks, before or behind its pixels, whose checksums are off by ``checksum``."""
    data = encoded(Image.fromarray(RGB), "PNG")
    at = data.index(b"IEND") - 4 if behind else 33
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ checksum)
        for kind, body in chunks
    ]
    return data[:at] + b"".join(packed) + data[at:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("checksum", [0, 1])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        (b"pHYs", bytes(9)),
        (b"pHYs", b""),
        (b"tIME", bytes(7)),
        (b"prVt", bytes(2_000_000)),
    ],
    ids=lambda chunk: f"{chunk[0].decode()}-{len(chunk[1])}",
)
def test_what_says_nothing_of_pixels_spoils_no_png(chunk: tuple[bytes, bytes], checksum: int, behind: bool) -> None:
    image = decode_image(png_with(chunk, checksum=checksum, behind=behind))
    assert np.array_equal(seen(image), RGB)
    assert image.notes == ()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_damaged_pixels_of_a_png_are_an_error(part: float) -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[round(part * len(data))] ^= 0xFF
    assert "damaged" in refusal(bytes(data))


def test_a_broken_chunk_that_speaks_of_pixels_is_an_error_or_noted() -> None:
    assert "damaged" in refusal(png_with((b"tRNS", bytes(6)), checksum=1))
    exif = decode_image(png_with((b"eXIf", b"II*\0"), checksum=1))
    assert exif.notes == ("eXIf chunk ignored: too long, or its checksum is wrong",)


def test_colours_that_a_png_declares_without_a_profile_are_noted() -> None:
    gamma, srgb_gamma = struct.pack(">I", 100_000), struct.pack(">I", 45_455)
    assert "not with the gamma of 1 " in decode_image(png_with((b"gAMA", gamma))).notes[0]
    assert decode_image(png_with((b"gAMA", gamma), (b"sRGB", b"\0"))).notes == ()
    assert decode_image(png_with((b"gAMA", srgb_gamma))).notes == ()
    assert "primaries 9 and transfer 16 (cICP)" in decode_image(png_with((b"cICP", b"\x09\x10\0\1"))).notes[0]
    assert decode_image(png_with((b"cICP", b"\x01\x0d\0\1"))).notes == ()


# Other formats


def test_a_bitmap_without_a_file_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.dib").write_bytes(encoded(Image.fromarray(RGB), "DIB"))
    (tmp_path / "b.dib").write_bytes(encoded(Image.fromarray(RGB), "BMP"))
    for name in ("a.dib", "b.dib"):
        assert np.array_equal(seen(decode_image(tmp_path / name)), RGB)


def bitfields(masks: tuple[int, int, int], pixels: bytes) -> bytes:
    """A BMP of 2x2 pixels with masks of its own."""
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 2 * len(pixels), 3, len(pixels), 0, 0, 0, 0)
    start = 14 + len(header) + 12
    return (
        b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + struct.pack("<III", *masks) + pixels
    )


TEN_BITS = bitfields((0x3FF00000, 0xFFC00, 0x3FF), bytes(16))  # which Pillow does not know


def test_a_dark_bitmap_with_sixteen_bits_for_three_colours_is_dark() -> None:
    image = decode_image(bitfields((0xF800, 0x7E0, 0x1F), struct.pack("<4H", *[0x0841] * 4)))
    assert image.notes == ()
    assert seen(image).max() == 8


def twelve_bit_jpeg() -> bytes:
    data = bytearray(encoded(Image.fromarray(GREY), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEN_BITS, "a BMP of a kind that is not read"),
        (twelve_bit_jpeg(), "a JPEG of a kind that is not read"),
        (b"\xff\x0a" + bytes(50), "not read: a JPEG XL; convert it"),
        (b"8BPS\0\1" + bytes(50), "not read: a Photoshop document; export it"),
        (b"v/1\x01" + bytes(50), "not read: an OpenEXR"),
        (b"#?RADIANCE\n" + bytes(50), "not read: a Radiance HDR"),
        (b"\0\0\0\x18ftypcrx " + bytes(50), "not read: a raw photograph"),
        (b"FUJIFILMCCD-RAW " + bytes(50), "not read: a raw photograph"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "not read: a raw photograph"),
    ],
)
def test_a_kind_that_is_not_read_is_named(data: bytes, message: str) -> None:
    found = refusal(data)
    assert message in found
    assert "damaged" not in found


def test_an_avif_that_the_library_refuses_is_an_avif() -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow was built without AVIF")
    clear = Image.fromarray(np.dstack([RGB, GREY]))
    message = refusal(encoded(clear, "AVIF").replace(b"ispe", b"free"))
    assert "or an AVIF of a kind that is not read" in message
    assert "not an image" not in message


# HEIF


def heic(image: Image.Image, **options: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return buffer.getvalue()


def test_heic_is_read_with_the_extra() -> None:
    image = decode_image(heic(Image.fromarray(RGB)))
    assert np.abs(seen(image).astype(int) - RGB).max() <= 2
    assert image.notes == ()


@pytest.mark.parametrize("orientation", [3, 6])
def test_heic_is_rotated_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {3: RGB[::-1, ::-1], 6: RGB.transpose(1, 0, 2)[:, ::-1]}[orientation]
    image = decode_image(heic(Image.fromarray(RGB), exif=exif.tobytes()))
    assert np.abs(seen(image).astype(int) - turned).max() <= 2
    assert image.notes == (f"rotation that the file declares applied (orientation {orientation})",)


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    assert 'pip install "qualiclip-plugin[heif]"' in refusal(heic(Image.fromarray(RGB)))


# Pillow's process-wide settings


def test_limits_of_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # as another library may have done
    data = encoded(Image.fromarray(RGB), "WEBP", lossless=True)
    outcomes: list[str] = []

    def read(limit: int) -> None:
        for _ in range(40):
            try:
                read_image(data, max_pixels=limit)
                outcomes.append(f"{limit} read")
            except ImageError as error:
                outcomes.append(f"{limit} refused" if f"the limit of {limit}" in str(error) else str(error))

    run_together(lambda: read(RGB.size), lambda: read(1000))
    assert sorted(set(outcomes)) == ["1000 refused", f"{RGB.size} read"]
    assert Image.MAX_IMAGE_PIXELS == 100


def run_together(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
