"""Training through pyiqa's own trainer: a model, a dataset and three losses for its registries.

``pyiqa.train.train_pipeline`` builds them by name from an option file (``configs/pyiqa_train.yaml``). They are thin:
crops, degradations and losses are those of this package's trainer. What pyiqa's trainer lacks, exact continuation
above all, ``qualiclip train`` has.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pyiqa.losses import build_loss
from pyiqa.models.base_model import BaseModel
from pyiqa.models.general_iqa_model import GeneralIQAModel
from pyiqa.utils import get_root_logger
from pyiqa.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from torch import Tensor, nn

from qualiclip_plugin.models.qualiclip import QualiCLIP, prompt_similarities
from qualiclip_plugin.training.config import TrainConfig, config_from_mapping
from qualiclip_plugin.training.distributed import CropEncoder
from qualiclip_plugin.training.draws import draw_crops, plan_of
from qualiclip_plugin.training.layers import choose_stages, set_training_mode, train_only
from qualiclip_plugin.training.losses import consistency_loss, negative_ranking_loss, positive_ranking_loss
from qualiclip_plugin.training.model_card import inherited, starting_record
from qualiclip_plugin.training.objective import ranking_accuracy
from qualiclip_plugin.training.photos import open_photos
from qualiclip_plugin.training.sampling import degrade
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.training.usable_photos import check_all, check_size
from qualiclip_plugin.utils.environment import versions
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, ImageError, did_you_mean
from qualiclip_plugin.utils.images import to_float
from qualiclip_plugin.utils.json_yaml import plain
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from qualiclip_plugin.weights.loading import chosen_weights

LOSS_PARTS = ("consistency", "positive", "negative")


class QualiCLIPConsistencyLoss(nn.Module):
    """:func:`losses.consistency_loss` for pyiqa's loss registry.

    Args:
        *values, **settings: Those of the function: ``margin``, the difference that costs nothing, and ``reduction``,
            ``sum`` or ``mean`` over the terms of a photograph.
        loss_weight: Factor.
    """

    function: Callable[..., Tensor] = staticmethod(consistency_loss)

    def __init__(self, *values: Any, loss_weight: float = 1.0, **settings: Any) -> None:
        super().__init__()
        # A misspelt one is an error before the first step.
        bound = inspect.signature(self.function).bind(None, *values, **settings)
        self.loss_weight, self.settings = loss_weight, dict(list(bound.arguments.items())[1:])

    def forward(self, similarities: Tensor) -> Tensor:
        """Similarities (B, 2, L, P, 2) -> scalar."""
        return self.loss_weight * self.function(similarities, **self.settings)


class QualiCLIPPositiveRankingLoss(QualiCLIPConsistencyLoss):
    """:func:`losses.positive_ranking_loss` for pyiqa's loss registry.

    Args:
        *values, **settings: Those of the function: ``margin``, the fall that every compared pair of levels must
            reach, ``pairs``, ``all`` or ``neighbours``, and ``reduction``, ``sum`` or ``mean``.
        loss_weight: Factor.
    """

    function = staticmethod(positive_ranking_loss)


class QualiCLIPNegativeRankingLoss(QualiCLIPConsistencyLoss):
    """:func:`losses.negative_ranking_loss` in the same way; ``margin`` is the rise."""

    function = staticmethod(negative_ranking_loss)


class QualiCLIPPristineDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Crop pairs of pristine photographs for pyiqa's data loader.

    Args:
        opt: ``photos`` (see ``photos.open_photos``), and of :class:`TrainConfig` ``crop_size``, ``crop_scale``,
            ``crop_overlap``, ``image_column``, ``split`` and ``check_photos``; pyiqa's own keys are left to pyiqa.

    Raises:
        DatasetError: There is no usable photograph.
    """

    KEYS = ("crop_size", "crop_scale", "crop_overlap", "image_column", "split", "check_photos")

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        if "photos" not in opt:
            raise DatasetError("the dataset's options lack photos: a folder, a dataset or 'skimage'")
        self.config = config_from_mapping({key: opt[key] for key in self.KEYS if key in opt}, "dataset options")
        self.photos = open_photos(opt["photos"], column=self.config.image_column, split=self.config.split)
        self.indices, skipped = list(range(len(self.photos))), dict[str, str]()
        if self.config.check_photos:
            with ThreadPoolExecutor() as pool:
                self.indices = check_all(self.photos, self.config.smallest_photo, skipped, pool, lambda _: None)
        for name, reason in skipped.items():
            get_root_logger().warning(f"skipped photograph {name}: {reason}")
        if not self.indices:
            raise DatasetError(f"no usable photograph in {opt['photos']!r}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``crops``: uint8 (2, 3, S, S); ``img_path``: the photograph's name.

        Raises:
            ImageError: The photograph cannot be used; the message names it.
        """
        row = self.indices[index]
        name = self.photos.name(row)
        # PyTorch seeds this generator anew in every worker and epoch, which pyiqa's seeding of NumPy does not.
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        try:
            photo = check_size(self.photos.read(row), self.config.smallest_photo)
        except ImageError as error:
            raise ImageError(f"photograph {name} cannot be used: {error}") from error
        return {"crops": draw_crops(photo, self.config, draws), "img_path": name}


class QualiCLIPTrainingModel(GeneralIQAModel):
    """pyiqa's training model for the image encoder of a ``QualiCLIP`` network.

    The network's options need ``train_image_encoder: true``. ``train.degradation`` takes ``table``,
    ``distortions``, ``levels``, ``compositions``, ``by_group`` and ``share_noise``, and ``train`` itself
    ``batch_norm`` and ``train_layers`` of :class:`TrainConfig`; ``train.consistency_loss_opt``,
    ``train.positive_loss_opt`` and ``train.negative_loss_opt`` name the losses, of which any may be left out.
    """

    KEYS = ("batch_norm", "train_layers")
    DEGRADATION_KEYS = ("table", "distortions", "levels", "compositions", "by_group", "share_noise")

    def model_to_device(self, net: nn.Module) -> nn.Module:
        # The encoder is what is distributed (see init_training_settings): pyiqa would wrap the scoring network,
        # whose output is not what the losses need.
        return net.to(self.device)

    def init_training_settings(self) -> None:
        """Losses, trained stages, optimizer and schedule."""
        train_opt = self.opt["train"]
        degradation = train_opt.get("degradation") or {}
        for key in degradation:
            if key not in self.DEGRADATION_KEYS:
                hint = did_you_mean(str(key), self.DEGRADATION_KEYS)
                hint = hint or f"; there are {', '.join(self.DEGRADATION_KEYS)}"
                raise ConfigError(f"train options: {key!r} is no setting of degradation{hint}")
        settings = {key: train_opt[key] for key in self.KEYS if key in train_opt} | dict(degradation)
        self.config: TrainConfig = config_from_mapping(settings, "train options")
        self.losses = {
            part: build_loss(train_opt[f"{part}_loss_opt"]).to(self.device)
            for part in LOSS_PARTS
            if train_opt.get(f"{part}_loss_opt")
        }
        if not self.losses:
            raise ConfigError(f"the train options name no loss; there are {', '.join(LOSS_PARTS)} (_loss_opt)")
        self.quality: QualiCLIP = self.net.quality_model
        if not any(parameter.requires_grad for parameter in self.quality.parameters()):
            raise ConfigError("nothing to train: set train_image_encoder: true in the network's options")
        train_only(self.quality.image_encoder, choose_stages(self.quality.image_encoder, self.config.train_layers))
        self.encoder = BaseModel.model_to_device(self, CropEncoder(self.quality))
        self.net_best = self.net
        # pyiqa reads this at the end whether or not it validated.
        self.best_metric_results: dict[str, Any] = {}
        self.setup_optimizers()
        self.setup_schedulers()

    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch: crops to train on, or images with scores to validate on."""
        if "crops" in data:
            self.crops = to_float(data["crops"].to(self.device))
        else:
            super().feed_data(data)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step: degrade, encode, compare, losses, optimizer."""
        config, rank = self.config, self.opt.get("rank", 0)
        draws = generator(self.opt.get("manual_seed") or 0, "plan", current_iter, rank)
        plan = plan_of(config, len(self.crops), draws)
        set_training_mode(self.quality.image_encoder, config.batch_norm)
        images = degrade(self.crops, plan)
        features = self.encoder(images.flatten(0, 2))
        similarities = prompt_similarities(features, self.quality.text_features).unflatten(0, images.shape[:3])
        parts = OrderedDict((f"l_{part}", loss(similarities)) for part, loss in self.losses.items())
        self.optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        self.optimizer.step()
        parts["ranking_accuracy"] = ranking_accuracy(similarities.detach()).mean()
        self.log_dict = self.reduce_loss_dict(parts)

    def save_network(
        self, net: nn.Module, net_label: str, current_iter: int | None = None, param_key: str = "params"
    ) -> None:
        """Write pyiqa's ``.pth`` and, beside it, the ``.safetensors`` that loads wherever a weight name can stand."""
        super().save_network(net, net_label, current_iter, param_key)
        if self.opt.get("rank", 0):
            return
        label = {None: net_label, -1: f"{net_label}_latest"}.get(current_iter, f"{net_label}_{current_iter}")
        start = starting_record(chosen_weights(self.opt["network"].get("weights")))
        card = {
            "trained_by": "pyiqa.train.train_pipeline",
            "options": {
                key: plain(self.opt[key]) for key in ("name", "network", "train", "datasets") if key in self.opt
            },
            "start": start,
            **inherited(start),
            "versions": versions(),
        }
        save_checkpoint(Path(self.opt["path"]["models"]) / f"{label}.safetensors", self.quality, card)


def register_model() -> None:
    """Entry point ``pyiqa.models``; may be called any number of times."""
    MODEL_REGISTRY.register(QualiCLIPTrainingModel, override=True)


def register_dataset() -> None:
    """Entry point ``pyiqa.datasets``; may be called any number of times."""
    DATASET_REGISTRY.register(QualiCLIPPristineDataset, override=True)


def register_losses() -> None:
    """Entry point ``pyiqa.losses``; may be called any number of times."""
    for loss in (QualiCLIPConsistencyLoss, QualiCLIPPositiveRankingLoss, QualiCLIPNegativeRankingLoss):
        LOSS_REGISTRY.register(loss, override=True)
