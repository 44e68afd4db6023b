"""Fuzzing of the image reader: whatever the bytes, an image within the limits or an ImageError, in bounded time.

``corpus/images`` keeps one file for every different way in which a decoder once failed on mutated files.
"""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images import MAX_SCANS, read_image
from tests.fuzz.mutations import Edit, edited, edits
from tests.support.image_seeds import picture, seeds

CORPUS = sorted((Path(__file__).parents[1] / "corpus" / "images").iterdir())
SEEDS = seeds()
LIMIT = 2**20
SECONDS = 2.0
"""Most computing time for a file of this module; whole ones take a few milliseconds."""
MEGABYTES = 200
"""Most memory that all files of a test may take together: 32 bytes per allowed pixel, and what the heap keeps."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's own remarks on damaged files


def outcome(source: bytes | Path) -> torch.Tensor | ImageError:
    try:
        return read_image(source, max_pixels=LIMIT)
    except ImageError as error:
        return error


def check(data: bytes) -> bool:
    """Read mutated bytes; any other exception, too large an image or too long a time fails. True: it was read."""
    started = time.process_time()
    result = outcome(data)
    assert time.process_time() - started < SECONDS
    if isinstance(result, ImageError):
        assert str(result).isprintable()
        assert len(str(result)) < 400
        return False
    assert result.dtype == torch.uint8
    assert result.shape[0] == 3
    assert 0 < result[0].numel() <= LIMIT
    return True


def used_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_whole(name: str) -> None:
    assert check(SEEDS[name])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_files_that_once_broke_a_decoder(path: Path) -> None:
    check(path.read_bytes())
    from_bytes, from_file = outcome(path.read_bytes()), outcome(path)
    if isinstance(from_file, ImageError):
        assert str(path) in str(from_file)
    assert isinstance(from_file, ImageError) == isinstance(from_bytes, ImageError)


def test_the_corpus_is_there_and_most_of_it_is_refused() -> None:
    assert len(CORPUS) >= 40
    assert sum(check(path.read_bytes()) for path in CORPUS) < len(CORPUS) / 4


_FUZZ = given(name=st.sampled_from(sorted(SEEDS)), edits=edits(sorted(SEEDS)))
_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=600, deadline=None, suppress_health_check=_CHECKS)
@_FUZZ
def test_mutated_files(name: str, edits: list[Edit]) -> None:
    before = used_megabytes()
    check(edited(SEEDS[name], edits, SEEDS))
    assert used_megabytes() - before < MEGABYTES


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=_CHECKS)
@_FUZZ
def test_many_mutated_files(name: str, edits: list[Edit]) -> None:
    before = used_megabytes()
    check(edited(SEEDS[name], edits, SEEDS))
    assert used_megabytes() - before < MEGABYTES


@given(st.binary(max_size=300))
def test_random_bytes_behind_every_signature(data: bytes) -> None:
    for signature in (b"", *{seed[:8] for seed in SEEDS.values()}):
        check(signature + data)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    # Each scan costs a pass over the whole picture and only a few bytes of file: 2 MB would take hours.
    buffer = io.BytesIO()
    picture(64, 64).convert("L").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rfind(b"\xff\xda")
    scan = data[data.rfind(b"\xff\xc4", 0, last) : -2]
    assert check(data[:-2] + scan * 20 + data[-2:]), "twenty more scans are unusual and harmless"
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        read_image(data[:-2] + scan * 300 + data[-2:])


def test_bytes_after_the_end_of_a_jpeg_are_not_counted_as_scans() -> None:
    # Phones append a film to a photograph.
    assert check(SEEDS["jpeg"] + b"\xff\xda\x00\x08" * 1000)


def test_a_canvas_larger_than_its_frames_is_refused() -> None:
    data = bytearray(SEEDS["webp-frames"])
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xfe\x3f\x00" * 2  # 16383 x 16383, minus one
    with pytest.raises(ImageError, match="limit"):
        read_image(bytes(data))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_a_chunk_that_inflates_a_thousandfold_is_not_inflated(kind: bytes) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(250)) + packer.flush()
    body = kind + b"x\0\0" + packed
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    before = used_megabytes()
    check(SEEDS["png"][:33] + chunk + SEEDS["png"][33:])  # after the header chunk
    assert used_megabytes() - before < MEGABYTES
