"""Mild encodings: cameras and web sites apply them to every picture, and people do not mind.

They are no degradations. A ladder carries one on all its levels, the pristine one too, so that a head which is fitted
to ladders sees that it says nothing of quality: pictures then differ by their encoding as they differ by content.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qualiclip_plugin.distortions.filters import per_image
from qualiclip_plugin.distortions.jpeg import jpeg
from qualiclip_plugin.distortions.registry import Apply
from qualiclip_plugin.distortions.sharpness import high_sharpen
from qualiclip_plugin.distortions.spatial import resize


@dataclass(frozen=True)
class Encoding:
    """One kind of mild encoding: how it is applied, and the range its strength is drawn from."""

    apply: Apply
    low: float
    high: float


def tone_curve(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Raise values in [0, 1], (N, 3, H, W), to the power ``strength``, (N,)."""
    return images.clamp(0, 1).pow(per_image(strength, images))


ENCODINGS = (
    Encoding(jpeg, 75, 75),  # the quality at which many programs write when nobody chooses one
    Encoding(jpeg, 75, 75),
    Encoding(jpeg, 75, 95),
    Encoding(jpeg, 75, 95),
    Encoding(resize, 1.05, 1.3),
    Encoding(high_sharpen, 0.1, 0.4),
    Encoding(tone_curve, 0.75, 1.0),
    Encoding(tone_curve, 1.0, 1.35),
)
"""Equally likely."""


@torch.no_grad()
def encode_ladders(ladders: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Draw an encoding for each ladder and give it to all levels of a share of them.

    Args:
        ladders: RGB in [0, 1], (B, L, 3, H, W), the pristine crop first.
        share: Probability of a ladder to be encoded, in [0, 1].
        draws: CPU generator; takes three draws a ladder, whatever they come to.

    Returns:
        In [0, 1], (B, L + 1, 3, H, W): the ladders, and last the pristine crop again, plain where the ladder is
        encoded, encoded where it is plain.
    """
    images = torch.cat([ladders, ladders[:, :1]], dim=1)
    for place, (chance, kind, where) in enumerate(torch.rand(len(ladders), 3, generator=draws).tolist()):
        chosen = slice(0, -1) if chance < share else slice(-1, None)
        encoding = ENCODINGS[int(kind * len(ENCODINGS))]
        plain = images[place, chosen]
        strength = torch.full((len(plain),), encoding.low + where * (encoding.high - encoding.low))
        images[place, chosen] = encoding.apply(plain, strength, torch.zeros(len(plain), dtype=torch.int64))
    return images
