"""The image reader as a hostile user meets it: every kind of file gives its pixels or an error with its name."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images import FORMATS, SUFFIXES, decode_image, images_in, read_image, to_float
from qualiclip_plugin.utils.shown import portable, printable

ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "jpeg2000": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
}


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def encoded_or_skip(image: Image.Image, encoding: str) -> bytes:
    Image.init()
    file_format, options = ENCODINGS[encoding]
    if file_format not in Image.SAVE:
        pytest.skip(f"this Pillow was built without {file_format}")
    return encode(image, file_format, **options)


def hwc(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def photo(photographs: list[np.ndarray]) -> Image.Image:
    """A photograph of 96 x 64 pixels."""
    return Image.fromarray(photographs[0]).resize((96, 64))


@pytest.fixture
def gradient() -> np.ndarray:
    """All 65536 values of sixteen bits, (256, 256)."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


# Pixels


def test_rgb_is_read_as_it_is(photo: Image.Image) -> None:
    pixels = read_image(encode(photo, "PNG"))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 64, 96)
    assert pixels.is_contiguous()
    assert np.array_equal(hwc(pixels), np.asarray(photo))


def test_to_float_spans_zero_to_one() -> None:
    pixels = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    assert to_float(pixels).dtype == torch.float32
    assert to_float(pixels).flatten().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_opaque_modes_agree_with_pillow(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(hwc(read_image(encode(image, file_format))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_declared_format_is_read(photo: Image.Image, encoding: str) -> None:
    difference = hwc(read_image(encoded_or_skip(photo, encoding))).astype(int) - np.asarray(photo)
    assert np.abs(difference).mean() < 12  # lossy codecs and GIF's palette of 256 colours


def test_path_and_bytes_give_the_same(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo.save(path)
    assert torch.equal(read_image(path), read_image(path.read_bytes()))
    assert torch.equal(read_image(str(path)), read_image(path))


def test_format_comes_from_the_content_not_the_name(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "really_a.jpg"
    path.write_bytes(encode(photo, "PNG"))
    assert np.array_equal(hwc(read_image(path)), np.asarray(photo))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_is_scaled_not_clipped(gradient: np.ndarray, file_format: str) -> None:
    pixels = hwc(read_image(encode(Image.fromarray(gradient), file_format)))
    assert np.array_equal(pixels[..., 0], gradient >> 8)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_big_endian_sixteen_bit_tiff(gradient: np.ndarray) -> None:
    image = Image.frombytes("I;16B", (256, 256), gradient.astype(">u2").tobytes())
    assert np.array_equal(hwc(read_image(encode(image, "TIFF")))[..., 1], gradient >> 8)


def test_sixteen_bit_colour_follows_the_rule_of_grey(gradient: np.ndarray) -> None:
    colour = png_of_sixteen_bits(np.stack([gradient] * 3, axis=-1), colour_type=2)
    grey = png_of_sixteen_bits(gradient[..., None], colour_type=0)
    assert torch.equal(read_image(colour), read_image(grey))


def test_sixteen_bit_grey_with_a_transparent_value(gradient: np.ndarray) -> None:
    data = png_of_sixteen_bits(gradient[..., None], colour_type=0, transparent=struct.pack(">H", 1000))
    pixels = hwc(read_image(data, background=(255, 0, 0)))
    assert pixels[1000 // 256, 1000 % 256].tolist() == [255, 0, 0]
    assert pixels[1001 // 256, 1001 % 256].tolist() == [3, 3, 3]


def png_of_sixteen_bits(values: np.ndarray, colour_type: int, transparent: bytes | None = None) -> bytes:
    height, width, _ = values.shape
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] if transparent else []
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_tiff(data: bytes, size: int, bits: int, photometric: int) -> bytes:
    """An uncompressed little-endian TIFF of one strip, ``size`` x ``size``."""
    tags = [
        (256, size), (257, size), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, size),
        (279, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0\0\0\0"


def test_twelve_bit_tiff_is_not_dark() -> None:
    # Two samples of twelve bits in three bytes: 0xFFF and 0x800.
    pixels = read_image(grey_tiff(b"\xff\xf8\x00" * 2, size=2, bits=12, photometric=1))
    assert pixels[0].tolist() == [[255, 128], [255, 128]]


def test_sixteen_bit_tiff_with_white_at_zero() -> None:
    values = np.array([[0, 65535], [256, 65279]], dtype="<u2")
    pixels = read_image(grey_tiff(values.tobytes(), size=2, bits=16, photometric=0))
    assert pixels[0].tolist() == [[255, 0], [254, 1]]


def test_wide_integers_and_floats_need_a_known_white_point() -> None:
    def tiff(values: np.ndarray) -> bytes:
        return encode(Image.fromarray(values), "TIFF")

    assert read_image(tiff(np.array([[0, 65535]], dtype=np.int32)))[0].tolist() == [[0, 255]]
    assert read_image(tiff(np.array([[0, 0.5, 1]], dtype=np.float32)))[0].tolist() == [[0, 128, 255]]
    for values in ([[0, 65536]], [[-1, 0]]):
        with pytest.raises(ImageError, match="white point"):
            read_image(tiff(np.array(values, dtype=np.int32)))
    for wrong in ([[0, 1.5]], [[-0.1, 0]], [[np.nan, 0]]):
        with pytest.raises(ImageError, match="white point"):
            read_image(tiff(np.array(wrong, dtype=np.float32)))


# Transparency


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_rgba_is_composited_on_the_background(background: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)])
    opaque, clear, mixed = hwc(read_image(encode(image, "PNG"), background=background))[0].tolist()
    assert opaque == [200, 100, 0]
    assert clear == list(background)
    assert mixed == pytest.approx([0.2 * f + 0.8 * b for f, b in zip((200, 100, 0), background, strict=True)], abs=1)


def test_grey_with_alpha_is_composited() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(10, 255), (10, 0)])
    assert read_image(encode(image, "PNG"))[0].tolist() == [[10, 255]]


def test_palette_transparency_as_one_index_and_as_a_table() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    for transparency in (1, b"\xff\x00"):
        pixels = hwc(read_image(encode(image, "PNG", transparency=transparency)))
        assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_transparent_colour_of_an_rgb_image() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    pixels = hwc(read_image(encode(image, "PNG", transparency=(1, 2, 3)), background=(7, 7, 7)))
    assert pixels.tolist() == [[[9, 9, 9], [7, 7, 7]]]


def test_compositing_is_noted_only_where_it_shows(photo: Image.Image) -> None:
    clear = photo.copy()
    clear.putalpha(128)
    assert decode_image(encode(clear, "PNG")).notes == ("transparency composited on (255, 255, 255)",)
    assert decode_image(encode(photo.convert("RGBA"), "PNG")).notes == ()


# CMYK


@pytest.mark.parametrize("rgb", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (40, 160, 90)])
def test_cmyk_jpeg_of_adobe_is_not_inverted(rgb: tuple[int, int, int]) -> None:
    # Pillow writes CMYK JPEG as Adobe does: with its marker and inverted inks.
    data = encode(Image.new("RGB", (16, 16), rgb).convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    assert hwc(read_image(data))[8, 8].tolist() == pytest.approx(rgb, abs=4)


# Rotation


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(file_format: str, orientation: int) -> None:
    corner = np.zeros((24, 48, 3), np.uint8)
    corner[:8, :16] = 255  # white block at the top left of what is stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(corner), file_format, exif=exif)
    stored = hwc(read_image(data, exif=False))[..., 0] > 127
    assert np.array_equal(stored, corner[..., 0] > 127)
    # The EXIF standard: where row 0 and column 0 of what is stored belong in the upright picture.
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.T, 6: stored.T[:, ::-1], 7: stored.T[::-1, ::-1], 8: stored.T[::-1],
    }[orientation]  # fmt: skip
    image = decode_image(data)
    assert np.array_equal(hwc(image.pixels)[..., 0] > 127, upright)
    assert any("EXIF rotation" in note for note in image.notes) == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_exif_orientation_outside_the_standard_is_ignored(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(hwc(read_image(encode(photo, "PNG", exif=exif))), np.asarray(photo))


def test_broken_exif_does_not_spoil_whole_pixels(photo: Image.Image) -> None:
    assert np.array_equal(hwc(read_image(encode(photo, "PNG", exif=b"Exif\0\0II*\0\xff\xff"))), np.asarray(photo))


# Animations and pages


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several_is_read_and_noted(file_format: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    image = decode_image(data)
    assert hwc(image.pixels)[20, 20].tolist() == [255, 0, 0]
    assert image.notes == ("first of several frames",)


# What cannot be read


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_truncated_file_is_an_error_or_whole(
    photo: Image.Image, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another library in the process may have told Pillow to return half images.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded_or_skip(photo, encoding)
    whole = read_image(data)
    refused = 0
    for cut in [*np.linspace(1, len(data) - 1, 25).astype(int), len(data) // 2]:
        try:
            assert torch.equal(read_image(data[:cut]), whole), f"half an image from {cut} of {len(data)} bytes"
        except ImageError:
            refused += 1
    assert refused >= 20
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True, "the setting of the other library is put back"


def test_truncation_guard_holds_while_other_threads_read(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    half = encode(photo.resize((480, 320)), "JPEG")
    half = half[: len(half) // 2]
    accepted = []

    def read() -> None:
        for _ in range(40):
            try:
                read_image(half)
            except ImageError:
                continue
            accepted.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not accepted
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\0", "not an image"),
        (b"hello, I am text\n" * 50, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not an image"),
        (b"\xff\xd8\xff\xe0", "damaged|not an image"),
    ],
)
def test_content_that_is_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some name.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ImageError, match=message):
        read_image(content)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares a huge picture."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (16_384, 12_289), (2**31 - 1, 2**31 - 1), (2**28, 1)])
@pytest.mark.filterwarnings("error")  # Pillow's words about bombs
def test_a_decompression_bomb_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoding was started"))
    with pytest.raises(ImageError, match=r"limit of 201326592; max_pixels \(--max-pixels\) changes it"):
        read_image(bomb(*size))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as another library may have done
    with pytest.raises(ImageError, match="limit of"):
        read_image(bomb(*size))


def test_the_pixel_limit_can_be_chosen(photo: Image.Image) -> None:
    data = encode(photo, "PNG")
    assert read_image(data, max_pixels=96 * 64).shape == (3, 64, 96)
    with pytest.raises(ImageError, match="96x64 pixels are more than the limit of 6143"):
        read_image(data, max_pixels=96 * 64 - 1)


def test_a_missing_file_a_dead_link_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for path, message in (
        (tmp_path / "missing.png", "no such file"),
        (tmp_path / "dead.png", "a link to nothing"),
        (tmp_path / "round.png", "symbolic links"),
        (tmp_path, "a folder is no image"),
        (tmp_path / "a\0b.png", "null"),
        (tmp_path / ("x" * 300 + ".png"), "too long"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            read_image(path)
        assert printable(path) in str(caught.value)


def test_a_named_pipe_and_a_device_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(path)


@pytest.fixture
def unprivileged() -> Iterator[Callable[[], None]]:
    """Drop root's rights for the rest of the test, where the tests run as root."""
    root = os.geteuid() == 0
    yield (lambda: os.seteuid(65534)) if root else lambda: None
    if root:
        os.seteuid(0)


def test_no_permission(photo: Image.Image, unprivileged: Callable[[], None]) -> None:
    # Not in tmp_path, whose parents are closed to other users anyway.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        photo.save(folder / "closed.png")
        photo.save(folder / "open.png")
        (folder / "closed.png").chmod(0)
        (folder / "cellar").mkdir(mode=0)
        unprivileged()
        try:
            files = images_in([folder])
            assert [file.name for file in files] == ["cellar", "closed.png", "open.png"]
            with pytest.raises(ImageError, match="cellar: no permission to read it"):
                read_image(files[0])
            with pytest.raises(ImageError, match=r"closed\.png: no permission to read it"):
                read_image(files[1])
            assert read_image(files[2]).shape == (3, 64, 96)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            (folder / "cellar").chmod(0o755)


# Names


def test_odd_names_are_read_and_shown_on_one_line(photo: Image.Image, tmp_path: Path) -> None:
    for name in ("with space.png", "new\nline.png", "ünïcode 图像.png", "tab\t.png", "\x1b[31mred.png", "'\"$`;.png"):
        photo.save(tmp_path / name, "PNG")
        assert read_image(tmp_path / name).shape == (3, 64, 96)
        assert printable(tmp_path / name).isprintable()
    assert len(images_in([tmp_path])) == 6
    assert printable("new\nline \x1b[31m") == "new\\nline \\x1b[31m"
    assert printable("图像 ü") == "图像 ü"


def test_a_name_that_is_no_utf8(photo: Image.Image, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(encode(photo, "PNG"))
    assert read_image(path).shape == (3, 64, 96)
    assert portable(path).encode() == os.fsencode(tmp_path) + b"/caf\\udce9.png"
    Path(path).write_bytes(b"")
    with pytest.raises(ImageError, match=r"caf\\udce9\.png: the file is empty"):
        read_image(path)


@given(st.text())
def test_printable_text_prints_on_one_line(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


# Lists of files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of every kind of place; empty, because listing reads none."""
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "deep/er/c.webp", ".secret/d.png", "deep/.e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def test_a_folder_stands_for_the_images_in_it(tree: Path) -> None:
    assert names(images_in([tree]), tree) == ["a.JPG", "b.png", "deep/er/c.webp"]


def test_files_stand_for_themselves_whatever_their_name(tree: Path) -> None:
    assert names(images_in([tree / "notes.txt", tree / ".hidden.png"]), tree) == [".hidden.png", "notes.txt"]
    assert names(images_in([tree / ".secret"]), tree) == [".secret/d.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("**/*.webp", ["deep/er/c.webp"]),
        ("[ab].*", ["a.JPG", "b.png"]),
        ("?.png", ["b.png"]),
        (".*.png", [".hidden.png"]),
        ("dee*", ["deep/er/c.webp"]),
        ("*", ["a.JPG", "b.png", "deep/er/c.webp", "notes.txt"]),
        ("**", ["a.JPG", "b.png", "deep/er/c.webp"]),
        ("*/er/*", ["deep/er/c.webp"]),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    found = names(images_in([str(tree / pattern)]), tree)
    if pattern == "**":  # Python 3.13 lets ** match files too, so that the text file is named
        found = [name for name in found if name != "notes.txt"]
    assert found == expected


def test_a_relative_pattern(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert images_in(["*.png"]) == [Path("b.png")]


def test_a_file_with_brackets_in_its_name_is_no_pattern(tree: Path) -> None:
    (tree / "b[1].png").touch()
    (tree / "b1.png").touch()
    assert names(images_in([tree / "b[1].png"]), tree) == ["b[1].png"]


def test_each_file_once_however_often_it_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    found = images_in([tree, tree / "b.png", "b.png", "./b.png", "deep/../b.png", tree / "deep", "*.png"])
    assert len(found) == 3


def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree)
    (tree / "deep" / "er" / "up").symlink_to("..")
    (tree / "self.png").symlink_to(tree / "self.png")
    (tree / "again.png").symlink_to(tree / "b.png")
    assert names(images_in([tree]), tree) == ["a.JPG", "again.png", "b.png", "deep/er/c.webp", "self.png"]
    assert "deep/er/c.webp" in names(images_in([str(tree / "**" / "*")]), tree)


def test_many_links_between_folders_do_not_explode(tmp_path: Path) -> None:
    folders = [tmp_path / f"folder{index}" for index in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "x.png").touch()
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert len(images_in([tmp_path])) == 12
    assert len(images_in([str(tmp_path / "**" / "*.png")])) == 12


def test_a_linked_folder_outside_is_read(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "o.png").touch()
    (tree / "link").symlink_to(outside)
    assert "link/o.png" in names(images_in([tree]), tree)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("missing.png", "missing.png: no such file or folder"),
        ("*.xyz", r"\*.xyz: the pattern matches nothing"),
        ("missing/*.png", "matches nothing"),
        ("empty", "no image in this folder"),
        ("", "no such file or folder"),
    ],
)
def test_a_path_that_stands_for_nothing_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    (tree / "empty").mkdir()
    monkeypatch.chdir(tree)
    with pytest.raises(ImageError, match=message):
        images_in(["b.png", argument])


def test_no_path_at_all() -> None:
    with pytest.raises(ImageError, match="no image, folder or pattern"):
        images_in([])


def test_suffixes_are_the_ones_of_the_formats() -> None:
    assert {".png", ".jpg", ".jpeg", ".tif", ".webp", ".bmp", ".gif"} <= SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert "EPS" not in FORMATS, "Pillow hands EPS to Ghostscript"
