"""Colours of files as sRGB: what profiles say is done and noted, and sRGB itself stays as it is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from harness.data.spec import DatasetSpec
from qualiclip_plugin.utils.images import colour, decode_image
from tests.support import icc
from tests.support.image_seeds import picture

RGB = np.asarray(picture(24, 20))
GREY = RGB[..., 0]
ADOBE = icc.matrix_profile(icc.ADOBE_RGB, 563 / 256, "Adobe RGB of the test")
P3 = icc.matrix_profile(icc.DISPLAY_P3, 2.2, "Display P3 of the test")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XYZ_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)  # under D50
FORMATS = {"PNG": {}, "TIFF": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def read(data: bytes, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    image = decode_image(data, **options)
    return image.pixels.permute(1, 2, 0).numpy(), image.notes


def converted(rgb: np.ndarray, matrix: icc.Rgb, gamma: float) -> np.ndarray:
    """What a matrix profile says, in floating point."""
    linear = (rgb / 255) ** gamma @ np.array(matrix).T @ XYZ_TO_SRGB.T
    return icc.srgb_curve(linear.clip(0, 1)) * 255


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("profile", "matrix", "gamma"), [(ADOBE, icc.ADOBE_RGB, 563 / 256), (P3, icc.DISPLAY_P3, 2.2)]
)
def test_colours_become_srgb(file_format: str, profile: bytes, matrix: icc.Rgb, gamma: float) -> None:
    image, options = Image.fromarray(RGB), FORMATS[file_format]
    pixels, notes = read(encoded(image, file_format, icc_profile=profile, **options))
    stored, _ = read(encoded(image, file_format, **options))
    assert np.abs(pixels - converted(stored, matrix, gamma)).max() < 2.5
    assert np.abs(pixels.astype(int) - stored).max() > 10
    assert len(notes) == 1
    assert "converted from" in notes[0]
    assert "of the test (RGB ICC profile)" in notes[0]


def test_no_icc_leaves_them_and_says_so() -> None:
    pixels, notes = read(encoded(Image.fromarray(RGB), icc_profile=ADOBE), icc=False)
    assert np.array_equal(pixels, RGB)
    assert notes == ("colours left in Adobe RGB of the test (RGB ICC profile)",)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_srgb_itself_changes_no_pixel(file_format: str, mode: str) -> None:
    image, options = Image.fromarray(RGB).convert(mode), FORMATS[file_format]
    plain, _ = read(encoded(image, file_format, **options))
    pixels, notes = read(encoded(image, file_format, icc_profile=SRGB, **options))
    assert np.array_equal(pixels, plain)
    assert notes == ()


@pytest.mark.parametrize("sixteen", [False, True])
def test_grey_profiles(sixteen: bool) -> None:
    profile = icc.grey_profile(1.8, "Grey 1.8")
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if sixteen else Image.fromarray(GREY)
    pixels, notes = read(encoded(image, icc_profile=profile))
    expected = icc.srgb_curve((GREY / 255) ** 1.8) * 255
    assert np.abs(pixels - expected[..., None]).max() < 2
    assert notes[-1] == "colours converted from Grey 1.8 (GRAY ICC profile)"


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_stays_beside_converted_colours(mode: str) -> None:
    clear = Image.fromarray(np.dstack([RGB, np.where(GREY > 60, 255, 0).astype(np.uint8)]))
    image = clear if mode == "RGBA" else clear.quantize(32)
    opaque, _ = read(encoded(image.convert("RGBA").convert("RGB"), icc_profile=ADOBE))
    pixels, notes = read(encoded(image, icc_profile=ADOBE), background=(9, 8, 7))
    shown = np.asarray(image.convert("RGBA"))[..., 3:] == 255
    assert np.array_equal(pixels, np.where(shown, opaque, np.array([9, 8, 7], np.uint8)))
    assert len(notes) == 2


def test_cmyk_profiles() -> None:
    ink = icc.table_profile(b"CMYK", 4, lambda c, m, y, k: ((1 - k) * (100 - 40 * c), 0, 0), "Ink of the test")
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for file_format in ("TIFF", "JPEG"):
        pixels, notes = read(encoded(image, file_format, icc_profile=ink))
        # L = 60 is a grey of 145 in sRGB.
        assert np.abs(pixels.astype(int) - 145).max() <= 3
        assert notes == ("colours converted from Ink of the test (CMYK ICC profile)",)
    _, notes = read(encoded(image, "TIFF"))
    assert notes == ("CMYK converted without a colour profile",)


def test_a_profile_of_tables_whose_channels_are_no_red_green_and_blue() -> None:
    # As the XYB profile of a JPEG has them: the file looks wrong until its profile is applied.
    swapped = icc.table_profile(b"RGB ", 3, lambda r, g, b: (100 * b, 0, 0), "The third is the light")
    pixels, notes = read(encoded(Image.new("RGB", (8, 8), (255, 0, 153)), "JPEG", quality=100, icc_profile=swapped))
    assert np.abs(pixels.astype(int) - 145).max() <= 4
    assert "converted from The third is the light" in notes[0]


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"", ""),
        ("RGB", b"no profile at all", "it cannot be read"),
        ("RGB", ADOBE[:200], "it cannot be read"),
        ("RGB", bytes(2**22 + 1), "it has more than 4194304 bytes"),
        ("RGB", icc.grey_profile(1.8, "Grey"), "it is for GRAY, the pixels are RGB"),
        ("CMYK", ADOBE, "it is for RGB, the pixels are CMYK"),
        ("RGB", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "its colour space is Lab"),
    ],
)
def test_a_profile_that_cannot_be_used_is_noted(mode: str, profile: bytes, reason: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    plain, _ = read(encoded(image, "TIFF"))
    pixels, notes = read(encoded(image, "TIFF", icc_profile=profile))
    assert np.array_equal(pixels, plain)
    assert any(note.startswith(f"ICC profile ignored: {reason}") for note in notes) == bool(reason)


def test_a_broken_profile_inside_a_png_is_noted() -> None:
    _, notes = read(encoded(Image.fromarray(RGB), icc_profile=b"no profile at all"))
    assert notes[0].startswith("ICC profile ignored: it cannot be read")


def test_a_profile_of_megabytes_spoils_no_png() -> None:
    long = ADOBE + np.random.default_rng(0).bytes(2**21)
    pixels, notes = read(encoded(Image.fromarray(RGB), icc_profile=long))
    assert np.array_equal(pixels, read(encoded(Image.fromarray(RGB), icc_profile=ADOBE))[0])
    assert len(notes) == 1


def test_the_choice_is_part_of_what_stored_scores_are_stored_under() -> None:
    from harness.data.open import ImageSet

    def reading(icc: bool) -> dict[str, Any]:
        spec = DatasetSpec("x", "1", "", "", "", icc=icc)
        return ImageSet(spec, None, None).reading  # type: ignore[arg-type]

    assert reading(True)["icc_applied"] is True
    assert reading(False)["icc_applied"] is False
    assert colour.littlecms_version()
