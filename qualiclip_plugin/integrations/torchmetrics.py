"""Mean quality over many images as a torchmetrics metric (extra ``torchmetrics``)."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.weights.loading import load_model

try:
    from torchmetrics import Metric
except ImportError as error:  # stays one, for programs that try the import
    raise ImportError(
        'QualiCLIPMetric needs a further package: pip install "qualiclip-plugin[torchmetrics]"', name="torchmetrics"
    ) from error


class QualiCLIPMetric(Metric):
    """Mean QualiCLIP score of all images seen since the last reset, over all processes.

    Args:
        weights: As for ``load_model``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        **options: torchmetrics' own.

    Examples:
        >>> from qualiclip_plugin.integrations.torchmetrics import QualiCLIPMetric
        >>> metric = QualiCLIPMetric("lite")
        >>> metric.higher_is_better
        True
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, weights: str | os.PathLike[str] | None = None, precision: str = "fp32", **options: Any
    ) -> None:
        super().__init__(**options)
        self.model = load_model(weights, precision=precision)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Add images (N, 3, H, W), RGB in [0, 1].

        Examples:
            >>> import torch
            >>> from qualiclip_plugin.integrations.torchmetrics import QualiCLIPMetric
            >>> metric = QualiCLIPMetric("lite")
            >>> metric.update(torch.rand(2, 3, 64, 64))
            >>> metric.count
            tensor(2)
        """
        with exact_fp32():
            scores = self.model(images)
        self.total += scores.double().sum()
        self.count += scores.shape[0]

    def compute(self) -> Tensor:
        """Mean score in [0, 1]; nan before the first image.

        Examples:
            >>> from qualiclip_plugin.integrations.torchmetrics import QualiCLIPMetric
            >>> from qualiclip_plugin.utils.images import read_image
            >>> metric = QualiCLIPMetric("lite")
            >>> metric.update(read_image("photo.png")[None])
            >>> f"{metric.compute():.2f}"
            '0.97'
        """
        return (self.total / self.count).float()
