"""NIQE fitted to your own pristine photographs.

Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", IEEE SPL 2013. The features
are pyiqa's own, so that ``niqe@pretrained_model_path=FILE`` measures the distance to the fitted model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor

PATCH = 96
"""Side of a patch in pixels, as published."""

SHARP = 0.75
"""Patches below this share of the sharpest patch's sharpness are left out, as published."""

FEATURES = 36


def fit_niqe(paths: Iterable[str | os.PathLike[str]], target: str | os.PathLike[str]) -> int:
    """Fit NIQE's Gaussian to pristine photographs and write it as pyiqa reads it.

    Args:
        paths: Photographs, at least one patch in size each.

    Returns:
        Number of patches that entered the fit.

    Raises:
        DatasetError: Fewer sharp patches than the covariance needs.
        ImageError: A photograph cannot be read.
    """
    import scipy.io

    from qualiclip_plugin.utils.images import read_image, to_float

    rows = [sharp_features(to_float(read_image(path))[None]) for path in paths]
    patches = np.concatenate(rows) if rows else np.empty((0, FEATURES))
    if len(patches) <= FEATURES:
        found = f"{len(rows)} photographs have {len(patches)} sharp patches of {PATCH} pixels"
        raise DatasetError(f"{found}, more than {FEATURES} are needed: add photographs, or larger ones")
    buffer = io.BytesIO()
    model = {"mu_prisparam": patches.mean(axis=0)[None], "cov_prisparam": np.cov(patches, rowvar=False)}
    scipy.io.savemat(buffer, model)  # type: ignore[arg-type]  # any binary file will do
    with atomic_write(Path(target)) as file:
        file.write(buffer.getvalue())
    return len(patches)


def sharp_features(image: Tensor) -> NDArray[np.float64]:
    """NIQE's features of the sharp patches of one image.

    Args:
        image: RGB in [0, 1], (1, 3, H, W).

    Returns:
        (P, 36), P the number of sharp patches; patches without a defined feature (flat ones) are left out.
    """
    import torch
    from pyiqa.archs.func_util import normalize_img_with_gauss
    from pyiqa.archs.niqe_arch import blockproc, compute_feature
    from pyiqa.matlab_utils import imresize
    from pyiqa.utils.color_util import to_y_channel

    luma = torch.round(to_y_channel(image, 255, "yiq")).double()
    height, width = (size // PATCH * PATCH for size in luma.shape[2:])
    if not height or not width:
        return np.empty((0, FEATURES))
    luma = luma[..., :height, :width]
    sharpness = patch_sharpness(luma)
    parts = []
    for scale in (1, 2):
        normalised = normalize_img_with_gauss(luma, padding="replicate")
        parts.append(blockproc(normalised, [PATCH // scale, PATCH // scale], fun=compute_feature)[0])
        luma = imresize(luma / 255, scale=0.5, antialiasing=True) * 255 if scale == 1 else luma
    features = torch.cat(parts, dim=-1).numpy()
    kept = (sharpness > SHARP * sharpness.max()) & np.isfinite(features).all(axis=1)
    return np.asarray(features[kept], dtype=np.float64)


def patch_sharpness(luma: Tensor) -> NDArray[np.float64]:
    """Mean local deviation of every patch of (1, 1, H, W), row by row; H and W multiples of the patch."""
    import torch.nn.functional as F
    from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped]

    mean = gaussian_blur(luma, [7, 7], [7 / 6, 7 / 6])
    deviation = (gaussian_blur(luma.square(), [7, 7], [7 / 6, 7 / 6]) - mean.square()).clamp(min=0).sqrt()
    return np.asarray(F.avg_pool2d(deviation, PATCH).flatten().numpy(), dtype=np.float64)
