"""Fit the head of the lite model in other ways, from the same features, and measure every variant.

    python results/lite/ablate.py --photos FOLDER --names held_out.txt --scored IMAGEFOLDER --features FILE.pt

Writes ``ablation.csv`` and ``ablation_head.md`` beside this file. The features of the training crops are those that
``qualiclip train --config lite`` fits to; they take most of the time and are kept in FILE for the next run. Human
scores are looked at and enter no fit.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from measure import LADDER_SETS, attribute_matrix, centre_crop, dl_tests, ladder_images
from torch import Tensor

from harness.statistics import srcc
from qualiclip_plugin.distortions import DISTORTIONS
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.lite.head_fit import fit_directions, ladder_moments
from qualiclip_plugin.training.lite.head_ranking import train_hidden_layer
from qualiclip_plugin.training.lite.ladder_features import LadderFeatures, collect_ladders, stage_pool_tower
from qualiclip_plugin.training.lite.start import starting_model
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.training_photos import TrainingPhotos
from qualiclip_plugin.training.usable_photos import SkipList
from qualiclip_plugin.utils.images import read_image, to_float

HERE = Path(__file__).parent
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


TRIALS: dict[str, Trial] = {
    "as shipped": Trial(),
    "another seed": Trial(("seed=1",)),
    "linear part alone": Trial(hidden=0),
    "linear part alone, other kinds ignored": Trial(("head.unnamed=0",), hidden=0),
    "linear part alone, contents ignored (named kinds weigh 100)": Trial(("head.named=100",), hidden=0),
    "linear part alone, stages 4 to 6": Trial(("head.stages=[4,5,6]",), hidden=0),
    "linear part alone, stages 2 to 6": Trial(("head.stages=[2,3,4,5,6]",), hidden=0),
    "other kinds ignored": Trial(("head.unnamed=0",)),
    "other kinds as steep as the named ones": Trial(("head.slope=1",)),
    "ridge .1": Trial(("head.penalty=0.1",)),
    "ridge 2": Trial(("head.penalty=2",)),
    "hidden 32": Trial(hidden=32),
    "hidden 512": Trial(hidden=512),
    "hidden layer unrestrained": Trial(("head.restraint=0",)),
    "hidden layer restrained, .1": Trial(("head.restraint=0.1",)),
    "5 epochs": Trial(("head.epochs=5",)),
    "60 epochs": Trial(("head.epochs=60",)),
    "learning rate 3e-4": Trial(("head.learning_rate=3e-4",)),
    "learning rate 3e-3": Trial(("head.learning_rate=3e-3",)),
    "no dropout": Trial(("head.dropout=0",)),
    "ranking margin .25": Trial(("head.ranking_margin=0.25",)),
    "ranking margin 1": Trial(("head.ranking_margin=1",)),
    "no order between contents": Trial(("head.pristine_weight=0",)),
    "order between contents .5": Trial(("head.pristine_weight=0.5",)),
    "pairs need not mean anything": Trial(("head.attribute_weight=0",)),
    "pairs apart by .3": Trial(("head.attribute_margin=0.3",)),
    "towards the D-test: ranking margin .35, order .4, pairs apart by .2": Trial(
        ("head.ranking_margin=0.35", "head.pristine_weight=0.4", "head.attribute_margin=0.2")
    ),
    "further: ranking margin .25, order .5, pairs apart by .2": Trial(
        ("head.ranking_margin=0.25", "head.pristine_weight=0.5", "head.attribute_margin=0.2")
    ),
    "half of the crops": Trial(share=0.5),
    "a quarter of the crops": Trial(share=0.25),
    "without camera shake": Trial(without=("camera_shake",)),
    "without motion blur and camera shake": Trial(without=("motion_blur", "camera_shake")),
    "without little light and exposure": Trial(without=("low_light", "underexposure", "overexposure", "haze")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those not trained on, one a line")
    parser.add_argument("--scored", type=Path, required=True, help="imagefolder with metadata.csv (file_name, mos)")
    parser.add_argument("--features", type=Path, required=True, help="file that keeps the features (.pt)")
    parser.add_argument("--batches", type=int, help="of crops, for a quick look; default: those of the recipe")
    arguments = parser.parse_args()
    if not arguments.features.exists():
        torch.save(features(arguments), arguments.features)
    known = torch.load(arguments.features, weights_only=True)
    seen = LadderFeatures(known["seen"], tuple(known["kinds"]), known["relevant"])
    rows = []
    for name, trial in TRIALS.items():
        rows.append({"variant": name, **figures(fitted(seen, trial), known)})
        print(rows[-1], flush=True)
        table = pd.DataFrame(rows)
        table.round(4).to_csv(HERE / "ablation.csv", index=False)
        (HERE / "ablation_head.md").write_text(table.to_markdown(index=False, floatfmt=".3f") + "\n")


def features(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pooled features of the training crops, of ladders of the held-out photographs and of the scored images."""
    config, model = load_config("lite"), starting_model()
    if arguments.batches:
        config = load_config("lite", [f"head.batches={arguments.batches}"])
    seen = training_features(config, model, str(arguments.photos))
    model.eval()
    prepare_for_inference(model.image_encoder)
    crops = torch.stack([centre_crop(arguments.photos / name) for name in arguments.names.read_text().split()])
    held_out = [torch.stack([pooled(model, step) for step in kind], 1) for kind in ladder_images(crops, KINDS)]
    panels = {panel.name: panel_features(model, panel) for panel in arguments.panels}
    return {"seen": dataclasses.asdict(seen), "held_out": torch.stack(held_out), "panels": panels}


def panel_features(model: QualiCLIP, panel: Path) -> Tensor:
    images = (to_float(read_image(panel / name))[None] for name in scored_table(panel).file_name)
    return torch.cat([pooled(model, image) for image in images])


def training_features(config: TrainConfig, model: QualiCLIP, photos: str) -> LadderFeatures:
    skipped = SkipList()
    display = Display(skipped, enabled=True)
    assert config.head is not None  # noqa: S101 (narrows the type: the configuration has one)
    with ThreadPoolExecutor(config.workers) as pool, display.counting("features", config.head.batches) as notice:
        crops = TrainingPhotos(config, photos, pool, skipped, display).fitting_crops(config.head.batches)
        return collect_ladders(model, crops, config, config.head.encoded, torch.device("cpu"), notice)


@torch.inference_mode()
def pooled(model: QualiCLIP, images: Tensor) -> Tensor:
    return stage_pool_tower(model).pool(model.normalise(images))


def fitted(seen: LadderFeatures, trial: Trial) -> Qualities:
    """Fit as ``fit_head`` does."""
    kept = torch.tensor([kind not in trial.without for kind in seen.kinds]).nonzero().flatten()
    kept = kept[: round(trial.share * len(kept))]
    seen = LadderFeatures(seen.features[kept], tuple(seen.kinds[row] for row in kept), seen.relevant[kept])
    config = load_config("lite", trial.settings)
    pairs = {
        pair: {kind: weight for kind, weight in kinds.items() if kind not in trial.without}
        for pair, kinds in config.head.pairs.items()
    }
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, pairs=pairs))
    columns = stage_pool_tower(starting_model()).columns(config.head.stages)
    weight, bias = fit_directions(ladder_moments(seen, columns), config.head, config.levels)
    layer = train_hidden_layer(seen, weight, bias, trial.hidden, config) if trial.hidden else None

    def qualities(pooled: Tensor) -> Tensor:
        linear = (pooled.double() @ weight.T + bias).float()
        return linear if layer is None else linear + layer(pooled)

    return qualities


def figures(qualities: Qualities, known: dict[str, Any]) -> dict[str, float]:
    """Agreement with people, D- and L-test, spread, and how much further the pairs that name a group fall."""
    pairs = torch.sigmoid(qualities(known["held_out"])).numpy()
    scores = torch.sigmoid(qualities(known["scored"])).mean(1).numpy()
    row = {"srcc": srcc(scores, known["mos"].numpy()).value}
    for name, kinds in LADDER_SETS.items():
        indices = [list(DISTORTIONS).index(kind) for kind in kinds]
        row |= {f"{name} {test}": value for test, value in dl_tests(pairs[indices].mean(-1)).items()}
    low, high = np.percentile(scores, [5, 95])
    matrix = attribute_matrix(pairs)
    for group, named in {"blur": "sharp_image", "noise": "noise_free", "compression": "high_quality"}.items():
        others = matrix.loc[group].drop([named, "sharp_edges"] if group == "blur" else [named])
        row[f"{group} apart"] = float(matrix.loc[group, named] - others.max())
    return row | {"5th": float(low), "95th": float(high)}


if __name__ == "__main__":
    main()
