"""Tune the lite model to pictures of one kind with ``--config adapt``, and measure what that gains and what it costs.

    python results/adapt/measure.py --own IMAGEFOLDER --others IMAGEFOLDER ... --features FILE.pt

The pristine pictures are the best-rated tenth of OWN: human scores choose them, and they are left out of what is
measured. Writes ``figures.csv`` and ``figures.md`` beside this file. The trunk does not move, so its features of all
panels are computed once and kept in FILE.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from harness.statistics import srcc
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import load_config
from qualiclip_plugin.training.lite.ladder_features import stage_pool_tower
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
BEST = 10
"""One picture in so many is taken for pristine."""
TRIALS: dict[str, list[str]] = {"`adapt`": [], "the whole way": ["head.share=1"], "another seed": ["seed=1"]}
"""Name -> what differs from ``adapt``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", type=Path, required=True, help="imagefolder of the kind, with human scores")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="imagefolders of other kinds")
    parser.add_argument("--features", type=Path, required=True, help="file that keeps the features (.pt)")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=["`adapt`"])
    arguments = parser.parse_args()
    panels = {panel.name: pd.read_csv(panel / "metadata.csv") for panel in [arguments.own, *arguments.others]}
    if not arguments.features.exists():
        model = load_model("lite")
        found = {panel.name: features(model, panel) for panel in [arguments.own, *arguments.others]}
        torch.save(found, arguments.features)
    seen = torch.load(arguments.features, weights_only=True)
    own = panels[arguments.own.name]
    best = own.mos.rank(ascending=False, method="first") <= len(own) // BEST
    rows = [{"weights": "`lite`", **agreement("lite", panels, seen, arguments.own.name, best)}]
    for name in arguments.trials:
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder) / "photos"
            photos.mkdir()
            for file in own.file_name[best]:
                (photos / file).symlink_to((arguments.own / file).absolute())
            result = train(load_config("adapt", TRIALS[name]), str(photos), str(Path(folder) / "run"))
            rows.append({"weights": name, **agreement(str(result.model), panels, seen, arguments.own.name, best)})
        table = pd.DataFrame(rows).round(4)
        table.to_csv(HERE / "figures.csv", index=False)
        (HERE / "figures.md").write_text(table.to_markdown(index=False, floatfmt=".3f") + "\n")
        print(table.to_markdown(index=False, floatfmt=".3f"), file=sys.stderr)


@torch.inference_mode()
def features(model: QualiCLIP, panel: Path) -> Tensor:
    """Pooled features of the whole images, in the table's order, (N, C)."""
    prepare_for_inference(model.image_encoder)
    names = pd.read_csv(panel / "metadata.csv").file_name
    images = (to_float(read_image(panel / name))[None] for name in names)
    return torch.cat([stage_pool_tower(model).pool(model.normalise(image)) for image in images])


@torch.inference_mode()
def agreement(
    weights: str, panels: dict[str, pd.DataFrame], seen: dict[str, Tensor], own: str, best: pd.Series
) -> dict[str, float]:
    """SRCC with people on every panel, without the pictures that were trained on."""
    model = load_model(weights, inference=False)
    row = {}
    for name, table in panels.items():
        encoded = torch.nn.functional.normalize(stage_pool_tower(model).project(seen[name]), dim=-1)
        logits = model.logit_scale * (encoded @ (model.text_features[:, 0] - model.text_features[:, 1]).T)
        scores = torch.sigmoid(logits).mean(1).numpy()
        rows = ~best.to_numpy() if name == own else slice(None)
        row[name.removesuffix("_panel")] = srcc(scores[rows], table.mos[rows]).value
    return row


if __name__ == "__main__":
    main()
