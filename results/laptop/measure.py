"""Try variants of ``laptop``, and measure each for agreement with people and order along ladders.

    python results/laptop/measure.py --photos FOLDER --names results/lite/held_out.txt --scored IMAGEFOLDER

Writes ``trials.csv`` and ``trials.md`` beside this file, and ``docs/training.png`` from the first variant: the
configuration as it ships, on the photographs of scikit-image. Human scores are looked at and enter no loss.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qualiclip_plugin.files import atomic_write
from qualiclip_plugin.images import read_image
from qualiclip_plugin.model import QualiCLIP
from qualiclip_plugin.provenance import versions
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.photos import SKIMAGE
from qualiclip_plugin.training.run_folder import read_csv
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.training.validation import ScoredData, held_out_crops, read_scored_data, validate
from qualiclip_plugin.weights import load_model

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "training.png"
SIDE = 160
"""Of the crops of the photographs that no variant trains on, in pixels."""

TRIALS: dict[str, list[str]] = {
    "`laptop`": [],
    "another seed: other photographs held out, other draws": ["seed=1"],
    "a third seed": ["seed=2"],
    "no ranking across contents": ["content_weight=0"],
    "no pull to the start": ["start_pull=0"],
    "neither": ["content_weight=0", "start_pull=0"],
    "neither, averaged weights instead": ["content_weight=0", "start_pull=0", "ema=0.98"],
    "half the pull": ["start_pull=1"],
    "three times the learning rate": ["learning_rate=3e-4"],
    "the last stage of the trunk trains too": ["train_layers=2"],
    "`table: camera`": ["table=camera"],
    "the paper's losses, four stages, 1e-3": [
        "reduction=sum",
        "ranking_margin=0.0675",
        "content_weight=0",
        "start_pull=0",
        "train_layers=4",
        "learning_rate=1e-3",
    ],
}
"""Name -> what differs from ``laptop``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those to look at, one a line")
    parser.add_argument("--scored", required=True, help="imagefolder with metadata.csv (file_name, mos)")
    parser.add_argument("--only", help="run the variants whose name contains this, and write nothing")
    arguments = parser.parse_args()
    names = arguments.names.read_text().split()
    crops = held_out_crops([read_image(arguments.photos / name) for name in names], SIDE)
    scored = read_scored_data(arguments.scored)
    rows = []
    if not arguments.only:
        rows.append({"variant": "start: `lite`", **measure(load_model("lite", inference=False), crops, scored)})
    for name, settings in TRIALS.items():
        if not arguments.only or arguments.only in name:
            rows.append({"variant": name, **trial(settings, crops, scored, keep=not arguments.only and not settings)})
            print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"), flush=True)
    if not arguments.only:
        write(pd.DataFrame(rows), len(names), len(scored.files))


def trial(settings: list[str], crops: torch.Tensor, scored: ScoredData, *, keep: bool) -> dict[str, Any]:
    """Figures of one variant; ``keep`` takes its picture into the documentation."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        settings = settings if keep else [*settings, "validate_every=0"]
        result = train(load_config("laptop", settings), SKIMAGE, str(output))
        figures = measure(load_model(str(result.model), inference=False), crops, scored)
        log = read_csv(output / "log.csv")
        if keep:
            PICTURE.write_bytes((output / "training.png").read_bytes())
            print(describe(log), flush=True)
    return {**figures, "seconds": sum(float(row["seconds"]) for row in log)}


def describe(log: list[dict[str, str]]) -> str:
    """What a reader of the documentation may expect: means over the first and the last twenty steps."""
    parts = []
    for name in ("loss", "accuracy"):
        first, last = (sum(float(row[name]) for row in rows) / len(rows) for rows in (log[:20], log[-20:]))
        parts.append(f"{name} {first:.3g} to {last:.3g}")
    losses = sorted(float(row["loss"]) for row in log)
    return f"{', '.join(parts)}; loss of a step between {losses[0]:.2g} and {losses[-1]:.2g}"


def measure(model: QualiCLIP, crops: torch.Tensor, scored: ScoredData) -> dict[str, float]:
    """SRCC with the scored images, and the order along all ladders of the default table on the crops."""
    figures = validate(model, crops, scored, TrainConfig())
    return {name: figures[name] for name in ("srcc", "ranking_accuracy", "d_test", "l_test")}


def write(table: pd.DataFrame, photographs: int, images: int) -> None:
    """Write the table as CSV and, with how it was measured, as Markdown."""
    table.round(4).to_csv(HERE / "trials.csv", index=False)
    found = ", ".join(f"{library} {version}" for library, version in versions().items())
    text = (
        f"{table.to_markdown(index=False, floatfmt='.3f')}\n\n"
        f"SRCC on {images} scored photographs; the other figures on {photographs} photographs that no variant trains "
        f"on, all distortions of the default table. Seconds: training alone, {torch.get_num_threads()} threads. "
        f"{time.strftime('%Y-%m-%d')}, {found}.\n"
    )
    with atomic_write(HERE / "trials.md", "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
