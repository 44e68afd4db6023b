"""MDFS (Ni et al., IEEE TMM 2024) as a command: images in, a JSON list of distances out; lower is better.

git clone https://github.com/eezkni/MDFS            # with its MDFS_weights.pth
iqa-harness run --scorer "cmd:python mdfs_score.py MDFS@lower_better=true,opinion_aware=false"
"""

from __future__ import annotations

import json
import sys

import torch
from PIL import Image
from torch import Tensor


def distance(features: Tensor, weights: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Mean distance of patches (P, D) to a Gaussian, weighted by how much each patch matters."""
    difference = features - mean
    solved = torch.linalg.solve((features.T.cov() + covariance) / 2, difference.T).T
    distances = (difference * solved).sum(dim=1).clamp(min=0).sqrt()
    return float((distances.reshape(weights.shape) * weights).sum() / weights.sum())


folder, *paths = sys.argv[1:]
sys.path.insert(0, folder)
from model import APL, EffNet, prepare_image  # noqa: E402

pristine = torch.load(f"{folder}/MDFS_weights.pth", "cpu", weights_only=True)
encode, pool = EffNet().eval(), APL().eval()
with torch.no_grad():
    pooled = [pool(encode(prepare_image(Image.open(path).convert("RGB"))), select=0) for path in paths]
print(json.dumps([distance(*parts, pristine.mean(dim=0, keepdim=True), pristine.T.cov()) for parts in pooled]))
