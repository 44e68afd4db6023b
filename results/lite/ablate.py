"""Fit the head of the lite model in other ways, from the same features, and measure every variant.

    python results/lite/ablate.py --photos FOLDER --names held_out.txt --panels IMAGEFOLDER ... --features FILE.pt

Writes ``panels.csv`` and ``panels.md`` beside this file. The features of the training crops are those that
``qualiclip train --config lite`` fits to; they take most of the time and are kept in FILE for the next run. Human
scores are looked at and enter no fit.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from measure import (
    LADDER_SETS,
    agreement,
    attribute_matrix,
    centre_crop,
    dl_tests,
    ladder_images,
    scored_table,
)
from torch import Tensor

from qualiclip_plugin.distortions import DISTORTIONS
from qualiclip_plugin.models.backbones import build_image_encoder
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.lite.head_fit import fit_directions, ladder_moments
from qualiclip_plugin.training.lite.head_ranking import train_hidden_layer
from qualiclip_plugin.training.lite.ladder_features import (
    LadderFeatures,
    collect_ladders,
    pool_files,
    pool_images,
)
from qualiclip_plugin.training.lite.start import BACKBONE, starting_model
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.training_photos import TrainingPhotos

HERE = Path(__file__).parent
KINDS = [name for name, kind in DISTORTIONS.items() if kind.group in ("blur", "noise", "compression")]
Qualities = Callable[[Tensor], Tensor]
"""Pooled features (..., C) -> arguments of the pairs' sigmoids, (..., 7)."""


class Trial(NamedTuple):
    """What differs from the shipped recipe.

    Attributes:
        settings: As for ``--set``.
        hidden: Units of the hidden layer; 0: the linear part alone.
        share: Part of the ladders that is learned from.
        without: Kinds that are not learned from.
    """

    settings: tuple[str, ...] = ()
    hidden: int = 128
    share: float = 1.0
    without: tuple[str, ...] = ()


NAMED = ("head.named=0.3",)
AS_BEFORE = (
    *NAMED,
    "head.pairs.good_photo.jpeg=1",
    "head.pairs.good_picture.jpeg=1",
    "head.pairs.high_quality.jpeg=4",
    "head.pairs.sharp_image.resize=0",
    "head.pairs.sharp_edges.resize=0",
)
"""What the named kinds weighed before JPEG weighed more in what good means, and resizing in what sharp means."""

TRIALS: dict[str, Trial] = {
    "as shipped": Trial(),
    "linear part alone": Trial(hidden=0),
    "linear part alone, stages 4 to 6": Trial(("head.stages=[4,5,6]",), hidden=0),
    "another seed of the hidden layer": Trial(("seed=1",)),
    "named kinds weigh .3 against the variety of contents": Trial(NAMED),
    "the same, JPEG and resizing weigh as in the model before": Trial(AS_BEFORE),
    "other kinds weigh .3": Trial(("head.unnamed=0.3",)),
    "other kinds .3 as steep as the named ones": Trial(("head.slope=0.3",)),
    "twins may differ": Trial(("head.twin_weight=0",)),
    "twins weigh .3": Trial(("head.twin_weight=0.3",)),
    "ridge .5": Trial(("head.penalty=0.5",)),
    "ridge 5": Trial(("head.penalty=5",)),
    "order between contents .5": Trial(("head.pristine_weight=0.5",)),
    "order between contents 1, ranking margin .35": Trial(("head.pristine_weight=1", "head.ranking_margin=0.35")),
    "hidden layer unrestrained": Trial(("head.restraint=0",)),
    "hidden layer restrained, .1": Trial(("head.restraint=0.1",)),
    "pairs need not mean anything": Trial(("head.attribute_weight=0",)),
    "half of the crops": Trial(share=0.5),
    "without motion blur and camera shake": Trial(without=("motion_blur", "camera_shake")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those not trained on, one a line")
    parser.add_argument("--panels", type=Path, nargs="+", required=True, help="imagefolders with human scores")
    parser.add_argument("--features", type=Path, required=True, help="file that keeps the features (.pt)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the tables")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), help="variants, for a quick look")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="as for qualiclip train, likewise")
    arguments = parser.parse_args()
    known = kept_features(arguments)
    known["tables"] = {panel.name: scored_table(panel) for panel in arguments.panels}
    seen = LadderFeatures(**known["seen"])
    rows = []
    for name in arguments.only:
        rows.append({"variant": name, **figures(fitted(seen, TRIALS[name], arguments.settings), known)})
        print(rows[-1], flush=True)
        table = pd.DataFrame(rows)
        table.round(4).to_csv(arguments.output / "panels.csv", index=False)
        (arguments.output / "panels.md").write_text(table.to_markdown(index=False, floatfmt=".3f") + "\n")


def kept_features(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pooled features of the training crops, of ladders of the held-out photographs and of the scored images."""
    kept = arguments.features
    known = torch.load(kept, weights_only=True) if kept.exists() else {}
    if {"seen", "held_out", "panels"} <= known.keys():
        return known
    config, model = load_config("lite", arguments.settings), starting_model()
    if "seen" not in known:
        known["seen"] = dataclasses.asdict(training_features(config, model, str(arguments.photos)))
        torch.save(known, kept)
    model.eval()
    prepare_for_inference(model.image_encoder)
    crops = torch.stack([centre_crop(arguments.photos / name) for name in arguments.names.read_text().split()])
    steps = [torch.stack([pool_images(model, step) for step in kind], 1) for kind in ladder_images(crops, KINDS)]
    known["held_out"] = torch.stack(steps)
    known["panels"] = {
        panel.name: pool_files(model, panel, scored_table(panel).file_name) for panel in arguments.panels
    }
    torch.save(known, kept)
    return known


def training_features(config: TrainConfig, model: QualiCLIP, photos: str) -> LadderFeatures:
    skipped: dict[str, str] = {}
    display = Display(skipped, enabled=True)
    assert config.head is not None  # noqa: S101 (narrows the type: the configuration has one)
    with ThreadPoolExecutor(config.workers) as pool, display.counting("features", config.head.batches) as notice:
        crops = TrainingPhotos(config, photos, pool, skipped, display).fitting_crops(config.head.batches)
        return collect_ladders(model, crops, config, config.head.encoded, torch.device("cpu"), notice)


def fitted(seen: LadderFeatures, trial: Trial, settings: Sequence[str] = ()) -> Qualities:
    """Fit as ``fit_head`` does."""
    kept = torch.tensor([kind not in trial.without for kind in seen.kinds]).nonzero().flatten()
    kept = kept[: round(trial.share * len(kept))]
    kinds = tuple(seen.kinds[row] for row in kept)
    seen = LadderFeatures(seen.features[kept], kinds, seen.relevant[kept], seen.twins[kept])
    config = load_config("lite", [*settings, *trial.settings])
    pairs = {
        pair: {kind: weight for kind, weight in kinds.items() if kind not in trial.without}
        for pair, kinds in config.head.pairs.items()
    }
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, pairs=pairs))
    columns = build_image_encoder(BACKBONE).columns(config.head.stages)
    weight, bias = fit_directions(ladder_moments(seen, columns), config.head, config.levels)
    layer = train_hidden_layer(seen, weight, bias, trial.hidden, config) if trial.hidden else None

    def qualities(pooled: Tensor) -> Tensor:
        linear = (pooled.double() @ weight.T + bias).float()
        return linear if layer is None else linear + layer(pooled)

    return qualities


def figures(qualities: Qualities, known: dict[str, Any]) -> dict[str, float]:
    """Agreement with people on every panel, D- and L-test, spread, and how far pairs that name a group stand out."""
    scores = {name: torch.sigmoid(qualities(seen)).mean(1).numpy() for name, seen in known["panels"].items()}
    found = {name: agreement(score, known["tables"][name]) for name, score in scores.items()}
    ranks = [panel["srcc"] for panel in found.values()]
    row = {name.removesuffix("_panel"): panel["srcc"] for name, panel in found.items()}
    row |= {"mean": float(np.mean(ranks)), "worst": min(ranks)}
    row["within files"] = found["livec_panel"]["srcc_within_kinds_of_files"]
    row["spread"] = float(np.subtract(*np.percentile(scores["livec_panel"], [95, 5])))
    pairs = torch.sigmoid(qualities(known["held_out"])).numpy()
    waterloo = dl_tests(pairs[[KINDS.index(kind) for kind in LADDER_SETS["waterloo"]]].mean(-1))
    row |= {"D": waterloo["d_test"], "L": waterloo["l_test"]}
    matrix = attribute_matrix(pairs, KINDS)
    for group, named in {"blur": "sharp_image", "noise": "noise_free", "compression": "high_quality"}.items():
        others = matrix.loc[group].drop([named, "sharp_edges"] if group == "blur" else [named])
        row[f"{group} apart"] = float(matrix.loc[group, named] - others.max())
    return row


if __name__ == "__main__":
    main()
