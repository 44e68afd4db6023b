"""What a quality map of ``qualiclip-lite`` shows: how surely the degraded part of a photograph has the lowest values.

    python results/maps/measure.py

A square of half the shorter side of each photograph of the scikit-image wheel is degraded at level 4. The area under
the ROC curve tells how often a window that lies mostly inside has a lower value than one that lies mostly outside:
1 always, .5 as often as not. Writes ``README.md`` beside this file.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from torch import Tensor

from harness.data.ladders import PHOTOGRAPHS, whole_photograph
from qualiclip_plugin.distortions import get_distortion
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.utils.environment import processor_name, versions
from qualiclip_plugin.weights import load_model

KINDS = ("gaussian_blur", "white_noise", "jpeg", "darken")
LEVEL, STRIDE = 4, 48
WINDOWS = (64, 96, 144)
HERE = Path(__file__).parent


def area(model: QualiCLIP, image: Tensor, kind: str, window: int) -> float:
    """Area under the ROC curve for one photograph (1, 3, H, W) and one kind."""
    distortion = get_distortion(kind)
    degraded = distortion.apply(
        image.clone(), torch.tensor([float(distortion.strengths[LEVEL - 1])]), torch.tensor([1])
    )
    side = min(image.shape[2:]) // 2
    top, left = ((length - side) // 2 for length in image.shape[2:])
    place = (..., slice(top, top + side), slice(left, left + side))
    mask = torch.zeros(1, 1, *image.shape[2:])
    mask[place] = 1
    mixed = image.clone()
    mixed[place] = degraded[place]
    # Whole strides alone, so that the mask's windows are the map's.
    height, width = ((length - window) // STRIDE * STRIDE + window for length in image.shape[2:])
    values = model.quality_map(mixed[..., :height, :width], window=window, stride=STRIDE).flatten()
    inside = (F.avg_pool2d(mask[..., :height, :width], window, STRIDE) > 0.5).flatten()
    good, bad = values[~inside].numpy(), values[inside].numpy()
    return float(mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))


def processor_seconds(model: QualiCLIP, images: Tensor, *, maps: bool, rounds: int = 9) -> float:
    """Processor time of a score or a map, the median of some calls."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        model.quality_map(images) if maps else model(images)
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    model = load_model("lite")
    photographs = {
        name: torch.from_numpy(whole_photograph(name).copy()).permute(2, 0, 1)[None] / 255 for name in PHOTOGRAPHS
    }
    rows = [
        {
            "kind": kind,
            "window": window,
            **{name: area(model, photo, kind, window) for name, photo in photographs.items()},
        }
        for kind in KINDS
        for window in WINDOWS
    ]
    frame = pd.DataFrame(rows)
    frame["mean"] = frame[list(photographs)].mean(axis=1)
    example = F.interpolate(next(iter(photographs.values())), (384, 512))
    with torch.inference_mode():
        score, found = (processor_seconds(model, example, maps=maps) for maps in (False, True))
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = f"""# What quality maps show

Area under the ROC curve of `qualiclip-lite`'s map against the degraded part, level {LEVEL}, stride {STRIDE} pixels
(`python results/maps/measure.py`; {processor_name()}, {pd.Timestamp.now():%Y-%m-%d}; {libraries}).
1: every window inside has a lower value than every window outside; .5: chance. No value is 1, because smooth parts of
a photograph have low values too.

{frame.to_markdown(index=False, floatfmt=".2f")}

A map with the default window and stride took {found / score:.1f} times the processor time of a score (512x384, one
thread).
"""
    (HERE / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
