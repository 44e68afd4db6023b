"""What reading costs beside decoding alone: ICC profiles, and the memory of a photograph of 200 megapixels.

``python -m tests.benchmarks.bench_reading``; ratios of medians within one run. Photographs are drawn, and so is their
noise: that they are pictures of nothing changes neither the codec's work nor the conversion's.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from qualiclip_plugin.utils.environment import processor_name
from qualiclip_plugin.utils.images import read_image
from tests.benchmarks.meters import peak_memory
from tests.support import icc

SIZE = (4000, 3000)
LARGEST = (16384, 12288)
RUNS = 9


def photograph(width: int, height: int) -> Image.Image:
    """Slow colours with noise, so that a codec has something to do."""
    noise = np.random.default_rng(0).integers(-20, 20, (512, 512, 3))
    rows = np.linspace(40, 200, 512)[:, None, None] + np.linspace(-20, 20, 512)[None, :, None]
    tile = Image.fromarray((rows + noise).clip(0, 255).astype(np.uint8))
    image = Image.new("RGB", (width, height))
    for left in range(0, width, 512):
        for top in range(0, height, 512):
            image.paste(tile, (left, top))
    return image


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def processor_seconds(work: Callable[[], object]) -> float:
    """Median processor time of a call: the clock's depends on what else runs."""
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Print processor, ratios and memory."""
    print(processor_name())
    image = photograph(*SIZE)
    profiles = {
        "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "Display P3": icc.matrix_profile(icc.DISPLAY_P3, 2.2, "P3"),
        "tables": icc.table_profile(b"RGB ", 3, lambda r, g, b: (100 * g, 60 * r - 30, 60 * b - 30), "tables"),
    }
    for file_format, options in (("JPEG", {"quality": 90}), ("PNG", {})):
        plain = encoded(image, file_format, **options)
        base = processor_seconds(lambda data=plain: read_image(data))
        for name, profile in profiles.items():
            data = encoded(image, file_format, icc_profile=profile, **options)
            ratio = processor_seconds(lambda data=data: read_image(data)) / base
            print(f"{file_format} {SIZE[0]}x{SIZE[1]}, {name}: {ratio:.2f}")
    data = encoded(photograph(*LARGEST), "JPEG", quality=90)
    taken = peak_memory(lambda: read_image(data), "cpu")
    print(f"memory of {LARGEST[0]}x{LARGEST[1]}: {'unknown' if taken is None else f'{taken / 1e9:.2f} GB'}")


if __name__ == "__main__":
    main()
