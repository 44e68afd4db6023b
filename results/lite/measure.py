"""Measure the lite model for its card: ladders, attributes, opinions, precision, speed.

    python results/lite/measure.py --photos FOLDER --names held_out.txt --panels IMAGEFOLDER ...

Writes ``figures.json``, ``attributes.csv`` and ``attributes.png`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from harness.statistics import d_test, interval, l_test, plcc, rated, srcc
from qualiclip_plugin.distortions import DISTORTIONS, GROUPS
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.utils.environment import versions
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
SIDE = 256
LADDER_SETS = {"waterloo": ("gaussian_blur", "white_noise", "jpeg", "jpeg2000"), "all": tuple(DISTORTIONS)}
"""The kinds of the Waterloo Exploration database, for which D-test and L-test were defined, and all that are here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--names", type=Path, required=True, help="names of those not trained on, one a line")
    parser.add_argument("--panels", type=Path, nargs="*", default=[], help="imagefolders with human scores")
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
    crops = [centre_crop(arguments.photos / name) for name in arguments.names.read_text().split()]
    scores, attributes = ladders(model, torch.stack(crops))
    figures = {
        "photographs": len(crops),
        "ladders": ladder_figures(scores),
        "precision": precision(arguments.weights, crops),
    }
    figures["images_per_second_512x384_2_threads"] = speed(model)
    figures["opinions"] = {panel.name: opinions(model, panel) for panel in arguments.panels}
    figures |= {"device": "CPU", "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    matrix = attribute_matrix(attributes)
    matrix.round(3).to_csv(HERE / "attributes.csv")
    draw(matrix)
    print(json.dumps(figures, indent=1))
    print(matrix.round(2).to_markdown())


def centre_crop(path: Path) -> Tensor:
    image = to_float(read_image(path))
    top, left = (image.shape[1] - SIDE) // 2, (image.shape[2] - SIDE) // 2
    return image[:, top : top + SIDE, left : left + SIDE]


def ladder_images(crops: Tensor, kinds: Sequence[str] = tuple(DISTORTIONS)) -> Iterator[list[Tensor]]:
    """Per kind, the pristine crops and their five levels."""
    seeds = torch.arange(len(crops))
    for kind in (DISTORTIONS[name] for name in kinds):
        strengths = [torch.full((len(crops),), kind.strength(level)) for level in range(1, 6)]
        yield [crops, *(kind.apply(crops, strength, seeds) for strength in strengths)]


def ladders(model: QualiCLIP, crops: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores (kinds, N, 6) and pair scores (kinds, N, 6, 7) along the ladders, the pristine crop first."""
    steps = [[measure(model, images) for images in kind] for kind in ladder_images(crops)]
    scores = torch.stack([torch.stack([score for score, _ in kind], 1) for kind in steps])
    attributes = torch.stack([torch.stack([pairs for _, pairs in kind], 1) for kind in steps])
    return scores.numpy(), attributes.numpy()


@torch.inference_mode()
def measure(model: QualiCLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    score, pairs = model(images, attributes=True)
    return score[:, 0], torch.stack(list(pairs.values()), 1)


def ladder_figures(scores: np.ndarray) -> dict[str, dict[str, float]]:
    names = list(DISTORTIONS)
    return {name: dl_tests(scores[[names.index(kind) for kind in kinds]]) for name, kinds in LADDER_SETS.items()}


def dl_tests(scores: np.ndarray) -> dict[str, float]:
    kinds, contents, levels = (index.ravel() for index in np.indices(scores.shape))
    counted = (levels > 0) | (kinds == 0)
    return {
        "d_test": d_test(scores.ravel()[counted], (levels == 0)[counted]).value,
        "l_test": l_test(scores.ravel(), levels, contents, kinds).value,
    }


def attribute_matrix(attributes: np.ndarray, kinds: Sequence[str] = tuple(DISTORTIONS)) -> pd.DataFrame:
    """Mean fall of each pair's score from the pristine crop to level 5, by distortion group."""
    fall = (attributes[:, :, 0] - attributes[:, :, 5]).mean(1)
    groups = [DISTORTIONS[name].group for name in kinds]
    table = pd.DataFrame(fall, columns=list(ATTRIBUTES)).groupby(groups).mean()
    return table.loc[[group for group in GROUPS if group in table.index]]


def precision(weights: str, crops: list[Tensor]) -> dict[str, float]:
    """Largest score difference of lower precisions from fp32."""
    images = torch.stack(crops)
    exact, *others = (measure(load_model(weights, precision=name), images)[0] for name in ("fp32", "fp16", "bf16"))
    return {name: float((scores - exact).abs().max()) for name, scores in zip(("fp16", "bf16"), others, strict=True)}


def speed(model: QualiCLIP) -> float:
    """Images of 512x384 a second, one at a time, two threads."""
    torch.set_num_threads(2)
    image = torch.rand(1, 3, 384, 512)
    times = []
    for _ in range(15):
        began = time.perf_counter()
        measure(model, image)
        times.append(time.perf_counter() - began)
    return float(1 / np.median(times))


def scored_table(panel: Path) -> pd.DataFrame:
    """Files and human scores (``file_name``, ``mos``) of an imagefolder."""
    return pd.read_csv(panel / "metadata.csv")


def opinions(model: QualiCLIP, panel: Path) -> dict[str, float]:
    table = scored_table(panel)
    scores = [measure(model, to_float(read_image(panel / name))[None])[0].item() for name in table.file_name]
    return agreement(np.array(scores), table)


def agreement(scores: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Agreement with people over all images, and the mean over images of one kind of file."""
    ranks = interval("srcc", scores, rated(table.mos))
    suffixes = table.file_name.str.lower().str.rsplit(".", n=1).str[-1]
    within = [srcc(scores[rows], table.mos[rows]).value for rows in (suffixes == kind for kind in suffixes.unique())]
    low, high = np.percentile(scores, [5, 95])
    return {
        "n": len(scores),
        "srcc": srcc(scores, table.mos).value,
        "srcc_low": ranks.low,
        "srcc_high": ranks.high,
        "srcc_within_kinds_of_files": float(np.mean(within)),
        "plcc_raw": plcc(scores, table.mos).value,
        "score_5th_percentile": float(low),
        "score_95th_percentile": float(high),
    }


def draw(matrix: pd.DataFrame) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    limit = float(np.abs(matrix.to_numpy()).max())
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(
        range(matrix.shape[1]), [name.replace("_", " ") for name in matrix.columns], rotation=30, ha="right"
    )
    axes.set_yticks(range(matrix.shape[0]), matrix.index)
    for row, column in np.ndindex(*matrix.shape):
        value = float(matrix.iat[row, column])
        color = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_title("How far a prompt pair's score falls from pristine to level 5")
    figure.colorbar(image, ax=axes)
    figure.savefig(HERE / "attributes.png", dpi=110)


if __name__ == "__main__":
    main()
