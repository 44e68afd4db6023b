"""Tune the lite model to pictures of one kind with ``--config adapt``, and measure what that gains and what it costs.

    python results/adapt/measure.py --panels IMAGEFOLDER ... --photos FOLDER --features FILE.pt

Kinds: each panel, whose best-rated tenth serves as pristine pictures (human scores choose them, and they are left out
of what is measured); pages of text and photographs of the night (``kinds.py``). On a panel the gain is one of SRCC
with people, on the others one of D- and L-test on ladders of pictures that were not trained on. The other panels are
the control. ``laptop`` is a row for comparison: ``--config laptop`` on the photographs of scikit-image.

Writes ``figures.csv`` and ``figures.md`` beside this file, and ``docs/training.png`` where ``laptop`` is measured.
The trunk does not move, so its features of what is measured are computed once and kept in FILE, those of a kind under
a hash of its pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from kinds import night, pages
from torch import Tensor

from harness.statistics import Images, rated, sign_flip_p
from harness.statistics.intervals import pseudo_values, t_half_width, without_each
from harness.statistics.registry import find
from qualiclip_plugin.distortions import DISTORTIONS
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import load_config
from qualiclip_plugin.training.lite.ladder_features import pool_files, pool_images, stage_pool_tower
from qualiclip_plugin.training.photos import SKIMAGE
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.training.validation import held_out_crops
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
DOCUMENTS = HERE.parents[1] / "docs"
BEST = 10
"""One picture of a panel in so many is taken for pristine."""
TRAINED, MEASURED = 40, 40
"""Pictures of a kind without human scores."""
WATERLOO = ("gaussian_blur", "white_noise", "jpeg", "jpeg2000")
SIDE = 256
LAPTOP = "laptop"


@dataclass(frozen=True)
class Kind:
    """Pictures of one kind.

    Attributes:
        name: As in the tables.
        pristine: What is trained on; empty for ``laptop``.
        measured: What gains are measured on.
        panel: Name of the panel that they belong to, or empty.
    """

    name: str
    pristine: list[Path]
    measured: list[Path]
    panel: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=Path, nargs="+", required=True, help="imagefolders with human scores")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs, for those of the night")
    parser.add_argument("--features", type=Path, required=True, help="file that keeps the features (.pt)")
    parser.add_argument("--kinds", nargs="+", help="renew the rows of these kinds alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {kind.name: kind for kind in all_kinds(arguments, Path(folder) / "pictures")}
        tables = {panel.name: pd.read_csv(panel / "metadata.csv") for panel in arguments.panels}
        seen = kept_features(arguments.features, arguments.panels, list(kinds.values()))
        for name in arguments.kinds or kinds:
            for seed in arguments.seeds:
                run = Path(folder) / f"{name}-{seed}"
                write(name, seed, list(trial(kinds[name], seed, tables, seen, run)))


def all_kinds(arguments: argparse.Namespace, folder: Path) -> Iterator[Kind]:
    """The kinds, their pictures written into ``folder`` where they are made here."""
    for panel in arguments.panels:
        table = pd.read_csv(panel / "metadata.csv")
        best = best_rated(table)
        files = [panel / name for name in table.file_name]
        yield Kind(
            panel.name.removesuffix("_panel"),
            [file for file, one in zip(files, best, strict=True) if one],
            [],
            panel.name,
        )
    count = TRAINED + MEASURED
    for name, made in {
        "pages": pages(DOCUMENTS, folder / "pages", count),
        "night": night(arguments.photos, folder / "night", count),
    }.items():
        yield Kind(name, made[::2], made[1::2])
    yield Kind(LAPTOP, [], [])


def best_rated(table: pd.DataFrame) -> np.ndarray:
    """Which rows are the best-rated tenth, (N,) bool."""
    return (table.mos.rank(ascending=False, method="first") <= len(table) // BEST).to_numpy()


def kept_features(file: Path, panels: list[Path], kinds: list[Kind]) -> dict[str, Tensor]:
    """Pooled features: of a panel's whole images in the table's order, (N, C); of a kind's ladders (K, N, 6, C)."""
    known = torch.load(file, weights_only=True) if file.exists() else {}
    model = load_model("lite", inference=False).eval()
    prepare_for_inference(model.image_encoder)
    for panel in panels:
        if panel.name not in known:
            names = pd.read_csv(panel / "metadata.csv").file_name
            known[panel.name] = pool_files(model, panel, names)
            torch.save(known, file)
    found = {panel.name: known[panel.name] for panel in panels}
    for kind in kinds:
        if kind.measured:
            pictures = b"".join(path.read_bytes() for path in kind.measured)
            key = f"{kind.name} {hashlib.sha256(pictures).hexdigest()}"
            if key not in known:
                crops = held_out_crops([read_image(path) for path in kind.measured], SIDE)
                known[key] = torch.stack([ladders(model, crops, name) for name in WATERLOO])
                torch.save(known, file)
            found[kind.name] = known[key]
    return found


def ladders(model: QualiCLIP, crops: Tensor, name: str) -> Tensor:
    """Features along one distortion's ladder, the pristine crop first, (N, 6, C)."""
    kind, seeds = DISTORTIONS[name], torch.arange(len(crops))
    strengths = [torch.full((len(crops),), kind.strength(level)) for level in range(1, 6)]
    steps = [crops, *(kind.apply(crops, strength, seeds) for strength in strengths)]
    return torch.stack([torch.cat([pool_images(model, part) for part in step.split(8)]) for step in steps], 1)


def trial(
    kind: Kind, seed: int, tables: dict[str, pd.DataFrame], seen: dict[str, Tensor], run: Path
) -> Iterator[dict[str, Any]]:
    """Tune to one kind, and compare with the weights that it began from: one row for each figure."""
    weights = tuned(kind, seed, run)
    models = [load_model("lite", inference=False), load_model(weights, inference=False)]
    for name, table in tables.items():
        own = name == kind.panel
        rows = ~best_rated(table) if own else np.ones(len(table), bool)
        images = rated(table.mos[rows])
        before, after = (scores(model, seen[name][torch.from_numpy(rows)]) for model in models)
        yield {"measured on": name, "own kind": own, **gain("srcc", before, after, images)}
    if kind.measured:
        images, chosen = ladder_images(len(kind.measured))
        before, after = (scores(model, seen[kind.name]).ravel()[chosen] for model in models)
        for key in ("d_test", "l_test"):
            yield {"measured on": "ladders", "own kind": True, **gain(key, before, after, images)}


def tuned(kind: Kind, seed: int, run: Path) -> str:
    """Weights that were tuned to a kind."""
    if kind.name == LAPTOP:
        result = train(load_config("laptop"), SKIMAGE, str(run))
        (DOCUMENTS / "training.png").write_bytes((run / "training.png").read_bytes())
        return str(result.model)
    photos = run.with_name(f"{run.name}-pristine")
    photos.mkdir()
    for file in kind.pristine:
        (photos / file.name).symlink_to(file.absolute())
    return str(train(load_config("adapt", [f"seed={seed}"]), str(photos), str(run)).model)


@torch.inference_mode()
def scores(model: QualiCLIP, features: Tensor) -> np.ndarray:
    """Scores from pooled features (..., C)."""
    encoded = torch.nn.functional.normalize(stage_pool_tower(model).project(features.flatten(0, -2)), dim=-1)
    logits = model.logit_scale * (encoded @ (model.text_features[:, 0] - model.text_features[:, 1]).T)
    return torch.sigmoid(logits).mean(1).view(features.shape[:-1]).numpy()


def ladder_images(contents: int) -> tuple[Images, np.ndarray]:
    """What is known of ladders (K, N, 6), and which of their images count: the pristine ones once."""
    kinds, photos, levels = (index.ravel() for index in np.indices((len(WATERLOO), contents, 6)))
    chosen = (levels > 0) | (kinds == 0)
    names = np.where(levels > 0, np.array(WATERLOO)[kinds], "")
    nothing = np.full(int(chosen.sum()), np.nan)
    images = Images(
        nothing, photos[chosen].astype(str), names[chosen], levels[chosen].astype(float), np.empty((0, len(nothing)))
    )
    return images, chosen


def gain(key: str, before: np.ndarray, after: np.ndarray, images: Images) -> dict[str, Any]:
    """A statistic before and after, and the difference with its interval, by what each content contributes.

    The D-test is judged by thresholds of the other contents, so that no best threshold flatters either side.
    """
    statistic = find(key)
    first, second = (without_each(statistic, values, images)[0][:, statistic.column] for values in (before, after))
    pseudo = pseudo_values(second[0] - first[0], second[1:] - first[1:])
    half = t_half_width(pseudo)
    difference = float(second[0] - first[0])
    return {
        "figure": key,
        "before": float(first[0]),
        "after": float(second[0]),
        "gain": difference,
        "gain_low": difference - half,
        "gain_high": difference + half,
        "p": float(sign_flip_p(pseudo[:, None])[0]),
    }


def write(name: str, seed: int, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a kind and seed into ``figures.csv``, in place of older ones, and write all as Markdown."""
    path = HERE / "figures.csv"
    table = pd.DataFrame(rows).round(4)
    table.insert(0, "kind", name)
    table.insert(1, "seed", seed)
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[(old.kind != name) | (old.seed != seed)], table])
    table.to_csv(path, index=False)
    (HERE / "figures.md").write_text(table.to_markdown(index=False, floatfmt=".3f") + "\n")
    print(table.to_markdown(index=False, floatfmt=".3f"), file=sys.stderr)


if __name__ == "__main__":
    main()
