"""Coverage-guided fuzzing of the image reader: ``python -m tests.fuzz_image_reader [FOLDER] [libFuzzer options]``.

Needs ``atheris`` (``tox -e fuzz``). Inputs that reach new code in Pillow's parsers are kept in FOLDER; an input that
ends in anything but an image or an ImageError, or takes too long, is written to the current folder as ``crash-*`` or
``timeout-*`` and belongs into ``tests/corpus/images``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "qualiclip_plugin.images"]):
    from PIL import Image

    Image.init()  # loads the parsers of the formats, which otherwise wait for the first file

    from qualiclip_plugin.errors import ImageError
    from qualiclip_plugin.images import read_image

from tests.image_seeds import seeds

LIMIT = 2**20


def read(data: bytes) -> None:
    """One input: anything but ImageError reaches the fuzzer as a crash."""
    try:
        pixels = read_image(data, max_pixels=LIMIT)
    except ImageError:
        return
    if not 0 < pixels[0].numel() <= LIMIT:
        raise AssertionError(f"an image of shape {tuple(pixels.shape)} passed the limit")


def main() -> None:
    """Start from the seeds and the corpus of the tests; runs for a minute unless the options say otherwise."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in seeds().items():
            Path(folder, name).write_bytes(data)
        defaults = [
            "-max_total_time=60",
            "-max_len=8192",
            "-timeout=20",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
        ]
        known = str(Path(__file__).parent / "corpus" / "images")
        atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:], folder, known], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
