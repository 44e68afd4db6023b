"""Validation during training: order along the distortion ladders of held-out photographs, and, where given, the
correlation with human scores, which no loss ever sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qualiclip_plugin.distortions import get_table
from qualiclip_plugin.models.qualiclip import QualiCLIP, check_images
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.losses import level_pairs
from qualiclip_plugin.training.sampling import degrade, sample_plan
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, ImageError
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.utils.metadata import check_labels, find_metadata, local_columns, local_rows
from qualiclip_plugin.utils.statistics import Estimate, d_test, l_test, srcc

BATCH = 32


@dataclass(frozen=True)
class ScoredData:
    """Images with human scores.

    Attributes:
        mos: Mean opinion scores, higher is better, (N,).
    """

    files: list[Path]
    mos: np.ndarray


def read_scored_data(folder: str, pool: Executor) -> ScoredData:
    """Read an imagefolder with ``metadata.csv`` or ``metadata.jsonl`` (columns ``file_name`` and ``mos``).

    Args:
        pool: Threads that decode every image once: a run may reach its first validation after days.

    Raises:
        DatasetError: As :func:`~qualiclip_plugin.utils.metadata.check_labels`; or the scores are not ``mos``,
            or all the same.
        ImageError: An image is not there, cannot be decoded or is too small.
    """
    place = Path(folder)
    tables = find_metadata(place)
    columns, _ = local_columns(place)
    if columns.opinion != "mos":
        raise DatasetError(f"{tables[0]}: no column mos, which validation compares with")
    origin = place if len(tables) > 1 else tables[0]
    rows = [row for _, row in check_labels(origin, local_rows(place, tables, columns), columns)]
    data = ScoredData([place / row["file_name"] for row in rows], np.array([float(row["mos"]) for row in rows]))
    if data.mos.min() == data.mos.max():
        raise DatasetError(f"{tables[0]}: all mos are {data.mos[0]:g}, and nothing correlates with that")
    list(pool.map(_check_image, data.files))
    return data


def _check_image(file: Path) -> None:
    pixels = read_image(file)
    try:
        check_images(pixels[None])
    except ImageError as error:
        raise ImageError(f"{file}: {error}") from error


def held_out_crops(photos: Sequence[Tensor], size: int) -> Tensor:
    """The centres of held-out photographs.

    Args:
        photos: RGB, uint8, (3, H, W) each.
        size: Wanted side in pixels; less where a photograph is smaller.

    Returns:
        (N, 3, S, S) in [0, 1], S at most ``size`` and a multiple of 8.
    """
    side = min(size, *(min(photo.shape[-2:]) for photo in photos)) // 8 * 8
    crops = []
    for photo in photos:
        top, left = (photo.shape[-2] - side) // 2, (photo.shape[-1] - side) // 2
        crops.append(to_float(photo[:, top : top + side, left : left + side]))
    return torch.stack(crops)


@torch.no_grad()
def ladder_scores(model: QualiCLIP, crops: Tensor, kind: str, config: TrainConfig) -> np.ndarray:
    """Scores along one distortion's ladder.

    Args:
        model: In evaluation mode.
        crops: Pristine crops in [0, 1], (N, 3, S, S), on the model's device.

    Returns:
        (N, L + 1), the pristine crop first.

    Raises:
        ConfigError: A score is not finite.
    """
    plan = sample_plan(
        len(crops),
        generator(config.seed, "validation", kind),
        table=config.table,
        distortions=(kind,),
        compositions=1,
        levels=config.levels,
    )
    images = degrade(crops, plan, include_pristine=True)
    scores = [model(batch)[:, 0] for batch in images.flatten(0, 1).split(BATCH)]
    return _finite(torch.cat(scores).view(images.shape[:2]).float().cpu().numpy())


def _finite(scores: np.ndarray) -> np.ndarray:
    # A network that diverges may be met here before the loss of its next step tells.
    if not np.isfinite(scores).all():
        raise ConfigError("the network gives scores that are not finite in validation: lower the learning rate")
    return scores


def validate(
    model: QualiCLIP, crops: Tensor | None, scored: ScoredData | None, config: TrainConfig
) -> dict[str, Any]:
    """All validation figures.

    Args:
        model: The network; left in evaluation mode.
        crops: Pristine held-out crops, (N, 3, S, S), or None.

    Returns:
        ``ranking_accuracy`` (mean over kinds), ``d_test``, ``l_test``, ``kinds`` (kind -> ranking accuracy) and
        ``srcc``; those that were not measured, or are undefined because all scores are the same, are absent.

    Raises:
        ConfigError: A score is not finite.
    """
    model.eval()
    figures: dict[str, Any] = {}
    if crops is not None:
        ladders = {kind: ladder_scores(model, crops, kind, config) for kind in get_table(config.table)}
        figures |= _ladder_figures(ladders)
    if scored is not None:
        device = crops.device if crops is not None else model.mean.device
        figures |= _defined({"srcc": correlation(model, scored, device)})
    return figures


def _ladder_figures(ladders: dict[str, np.ndarray]) -> dict[str, Any]:
    scores = np.stack(list(ladders.values()))
    kinds, contents, levels = (index.ravel() for index in np.indices(scores.shape))
    # The pristine crop is the same in every ladder; D counts it once.
    counted = (levels > 0) | (kinds == 0)
    milder, worse = level_pairs(scores.shape[2] - 1)
    degraded = scores[..., 1:]
    accuracy = (degraded[..., milder] > degraded[..., worse]).mean((1, 2))
    return {
        "ranking_accuracy": float(accuracy.mean()),
        **_defined(
            {
                "d_test": d_test(scores.ravel()[counted], (levels == 0)[counted]),
                "l_test": l_test(scores.ravel(), levels, contents, kinds),
            }
        ),
        "kinds": {kind: float(value) for kind, value in zip(ladders, accuracy, strict=True)},
    }


def _defined(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    # The figures enter the card of the weights, and JSON has no NaN.
    return {name: estimate.value for name, estimate in estimates.items() if estimate.defined}


@torch.no_grad()
def correlation(model: QualiCLIP, scored: ScoredData, device: torch.device) -> Estimate:
    """SRCC of the whole images' scores with the opinion scores."""
    scores = [model(to_float(read_image(file))[None].to(device)).item() for file in scored.files]
    return srcc(_finite(np.array(scores)), scored.mos)
