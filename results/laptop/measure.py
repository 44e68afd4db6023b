"""Try variants of ``laptop``, and measure each for agreement with people and order along ladders.

    python results/laptop/measure.py --photos FOLDER --names results/lite/held_out.txt --scored IMAGEFOLDER

Writes ``trials.csv`` and ``trials.md`` beside this file, and ``docs/training.png`` from the configuration as it
ships, on the photographs of scikit-image. Human scores are looked at and enter no loss.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.photos import SKIMAGE
from qualiclip_plugin.training.run_folder import read_csv
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.training.validation import ScoredData, held_out_crops, read_scored_data, validate
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "training.png"
SIDE = 160
"""Of the crops of the photographs that no variant trains on, in pixels."""

SHIPPED = "`laptop`"
TRIALS: dict[str, list[str]] = {
    "start: `lite`": ["steps=0"],
    SHIPPED: [],
    "another seed: other photographs held out, other draws": ["seed=1"],
    "neither ranking across contents nor a pull to the start": ["content_weight=0", "start_pull=0"],
}
"""Name -> what differs from ``laptop``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of good photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those only looked at, one a line")
    parser.add_argument("--scored", required=True, help="imagefolder with metadata.csv (file_name, mos)")
    parser.add_argument("--only", default="", help="renew the rows whose name contains this, keep the others")
    arguments = parser.parse_args()
    names = arguments.names.read_text().split()
    crops = held_out_crops([read_image(arguments.photos / name) for name in names], SIDE)
    scored = read_scored_data(arguments.scored)
    with tempfile.TemporaryDirectory() as folder:
        others = [path for path in arguments.photos.iterdir() if path.name not in names]
        for path in others:
            (Path(folder) / path.name).symlink_to(path.absolute())
        trials = {name: (SKIMAGE, settings) for name, settings in TRIALS.items()}
        trials[f"`laptop` on {len(others)} good photographs"] = (folder, [])
        for name, (photos, settings) in trials.items():
            if arguments.only in name:
                figures = trial(name, photos, settings, crops, scored)
                write({"variant": name, **figures, "date": time.strftime("%Y-%m-%d")}, list(trials))


def trial(name: str, photos: str, settings: list[str], crops: torch.Tensor, scored: ScoredData) -> dict[str, float]:
    """Figures of one variant; the picture of ``SHIPPED`` goes into the documentation."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        settings = settings if name == SHIPPED else [*settings, "validate_every=0"]
        result = train(load_config("laptop", settings), photos, str(output))
        if result.stopped_by:
            raise SystemExit(f"stopped by {result.stopped_by}")
        log = read_csv(output / "log.csv")
        if name == SHIPPED:
            PICTURE.write_bytes((output / "training.png").read_bytes())
            print(describe(log), flush=True)
        figures = measure(load_model(str(result.model), inference=False), crops, scored)
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


def write(row: dict[str, Any], order: list[str]) -> None:
    """Put a row into ``trials.csv``, in place of an older one of its name, and write all as Markdown."""
    rows = {old["variant"]: old for old in read_csv(HERE / "trials.csv")}
    rows[row["variant"]] = row
    table = pd.DataFrame([rows[name] for name in order if name in rows])
    numbers = [column for column in table.columns if column not in ("variant", "date")]
    table[numbers] = table[numbers].astype(float).round(4)
    table.to_csv(HERE / "trials.csv", index=False)
    shown = table.assign(seconds=table["seconds"].round().astype(int))
    with atomic_write(HERE / "trials.md", "w") as file:
        file.write(shown.to_markdown(index=False, floatfmt=".3f") + "\n")
    print(shown.to_markdown(index=False, floatfmt=".3f"), flush=True)


if __name__ == "__main__":
    main()
