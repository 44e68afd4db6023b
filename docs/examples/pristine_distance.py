r"""Opinion-unaware scores from somebody's encoder: how far a picture lies from pristine photographs in its features.

CONTRIQUE, Re-IQA and ARNIQA learn their encoders without human scores; what learned from opinions is the regressor
behind them. Here NIQE's idea (Mittal et al., IEEE SPL 2013) takes its place: a Gaussian is fitted to the features of
pristine photographs, and the score is the distance to it. The published variants differ in patches and covariance, so
figures made with this file are its own.

    iqa-harness run --scorer \
        "pristine_distance:score@lower_better=true,opinion_aware=false,encoder=arniqa,photos=my-pristine"

run in the folder of this file. ``arniqa`` needs pyiqa alone; the others need their repository in the current folder.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qualiclip_plugin.utils.images import read_image, to_float

Encoder = Callable[[Tensor], Tensor]
"""RGB in [0, 1], (N, 3, H, W), to features (N, D)."""

SHRINKAGE = 0.1
"""Share of a round covariance: there are fewer photographs than features."""

CROP = 224


def score(images: Tensor, encoder: str, photos: str) -> Tensor:
    """Distance to pristine photographs; lower is better.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        encoder: A name in ``ENCODERS``.
        photos: A folder of pristine photographs, at least 224 pixels on every side.

    Returns:
        Distances, (N,).
    """
    mean, precision = pristine(encoder, photos)
    with torch.no_grad():
        difference = started(encoder)(images).cpu().double() - mean
    return (difference @ precision * difference).sum(dim=1).sqrt()


@cache
def pristine(encoder: str, photos: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and inverse covariance (D, D) of the features of the photographs' middle crops."""
    paths = sorted(path for path in Path(photos).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    crops = [middle(to_float(read_image(path))) for path in paths]
    with torch.no_grad():
        features = torch.cat([started(encoder)(crop[None]).cpu().double() for crop in crops])
    covariance = features.T.cov()
    size = len(covariance)
    round_one = covariance.trace() / size * torch.eye(size, dtype=torch.float64)
    return features.mean(dim=0), torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * round_one)


def middle(image: Tensor) -> Tensor:
    """The square of ``CROP`` pixels in the middle of an image (3, H, W)."""
    top, left = ((side - CROP) // 2 for side in image.shape[1:])
    return image[:, top : top + CROP, left : left + CROP]


@cache
def started(encoder: str) -> Encoder:
    """The encoder of a name, loaded once."""
    return ENCODERS[encoder]()


def half(images: Tensor) -> Tensor:
    """Images at half their size, as all three encoders want them beside the whole ones."""
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)


def arniqa() -> Encoder:
    """ARNIQA (Agnolucci et al., WACV 2024) through pyiqa, without its regressor."""
    import pyiqa

    net = pyiqa.create_metric("arniqa", device="cpu").net

    def features(images: Tensor) -> Tensor:
        parts = net._preprocess(images.cpu())
        return torch.hstack([F.normalize(net.encoder(part), dim=1).flatten(1) for part in parts])

    return features


def contrique() -> Encoder:
    """CONTRIQUE (Madhusudana et al., TIP 2022): https://github.com/pavancm/CONTRIQUE beside this file."""
    sys.path.insert(0, "CONTRIQUE")
    from modules.CONTRIQUE_model import CONTRIQUE_model
    from modules.network import get_network

    model = CONTRIQUE_model(Namespace(), get_network("resnet50", pretrained=False), 2048).eval()
    model.load_state_dict(torch.load("CONTRIQUE/models/CONTRIQUE_checkpoint25.tar", "cpu", weights_only=True))
    return lambda images: torch.hstack(model(images.cpu(), half(images.cpu()))[4:6])


def reiqa() -> Encoder:
    """Re-IQA's quality-aware encoder (Saha et al., CVPR 2023): https://github.com/avinabsaha/ReIQA beside it."""
    sys.path.insert(0, "ReIQA")
    from networks.build_backbone import build_model
    from options.train_options import TrainOptions

    arguments, sys.argv = sys.argv, sys.argv[:1]
    model = nn.DataParallel(build_model(TrainOptions().parse())[0]).eval()
    sys.argv = arguments
    model.load_state_dict(torch.load("ReIQA/reiqa_ckpts/quality_aware_r50.pth", "cpu", weights_only=True)["model"])
    encode = model.module.encoder
    return lambda images: torch.hstack([encode(images.cpu()), encode(half(images.cpu()))])


ENCODERS: dict[str, Callable[[], Encoder]] = {"arniqa": arniqa, "contrique": contrique, "reiqa": reiqa}
