"""The network that learns: a step in time order, its optimizer, its averaged weights.

Encode the degraded crops, compare them with the prompts, take the losses, step. The losses of a distributed run are
taken on the gathered similarities of all processes, so many processes compute what one would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from qualiclip_plugin.models.qualiclip import QualiCLIP, prompt_similarities
from qualiclip_plugin.training.batches import Batch
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.distributed import CropEncoder
from qualiclip_plugin.training.draws import relevant_pairs
from qualiclip_plugin.training.layers import movement, pull_to_start, set_training_mode
from qualiclip_plugin.training.objective import needs, objective, ranking_accuracy
from qualiclip_plugin.training.optimizer import build_optimizer, learning_rate
from qualiclip_plugin.utils.gmsd import gmsd


class Learner:
    """A network on its device, with what a step needs and what it leaves.

    Args:
        model: Starting weights, the stages that train already chosen; moved to the accelerator's device.

    Attributes:
        start: The image encoder's parameters before training, by name.
        averaged: Averaged weights by name, or None if the configuration averages none.
    """

    def __init__(self, model: QualiCLIP, config: TrainConfig, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        if config.channels_last:
            model.image_encoder.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        self.start = _copies(dict(model.image_encoder.named_parameters()))
        self.averaged = _copies(model.state_dict()) if config.ema else None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        encoder: nn.Module = CropEncoder(model)
        if config.batch_norm == "train" and accelerator.num_processes > 1:
            encoder = convert_sync_batchnorm(encoder)
        if config.compile:
            encoder.compile()
        self.encoder, self.optimizer = accelerator.prepare(encoder, build_optimizer(config, trained))

    def state(self) -> dict[str, Any]:
        """Optimizer and gradient scaler, as :meth:`restore` takes them."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def restore(
        self, weights: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None, state: Mapping[str, Any]
    ) -> None:
        """Take up the weights and the state of a checkpoint."""
        self.model.load_state_dict(weights)
        if self.averaged is not None and averaged is not None:
            for name, value in self.averaged.items():
                value.copy_(averaged[name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimizer step; returns the loss, its parts and the ranking accuracy of the whole batch, 0-d each."""
        config = self.config
        set_training_mode(self.model.image_encoder, config.batch_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, batch.step)
        similarities, distances = self.similarities(batch)
        device = similarities.device
        relevant = relevant_pairs(batch.plan, config).to(device) if needs(config, "relevant") else None
        loss, parts = objective(similarities, config, distances=distances, relevant=relevant)
        self._backward(loss)
        self._update_average()
        return {"loss": loss, **parts, "accuracy": ranking_accuracy(similarities).mean()}

    def similarities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Encode this process's crops and compare them with the prompts.

        Returns:
            Similarities of the whole batch, (B, 2, L, P, 2), gradient in this process's part; GMSD (B, 2, L) or
            None if no loss asks for it.
        """
        shape, flat = batch.images.shape[:3], batch.images.flatten(0, 2)
        features = self.encoder(flat).float()
        similarities = prompt_similarities(features, self.model.text_features).unflatten(0, shape)
        distances = None
        if needs(self.config, "distances"):
            pristine = batch.crops[:, :, None].expand_as(batch.images).flatten(0, 2)
            distances = self.gather(gmsd(flat, pristine).unflatten(0, shape))
        return self.gather(similarities), distances

    def gather(self, part: Tensor) -> Tensor:
        """Join the parts of all processes along the first axis; gradient flows into this process's part."""
        if self.accelerator.num_processes == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.accelerator.num_processes)]
        torch.distributed.all_gather(parts, part.detach().contiguous())
        parts[self.accelerator.process_index] = part
        return torch.cat(parts)

    def _backward(self, loss: Tensor) -> None:
        """Gradient and optimizer step."""
        config, encoder = self.config, self.model.image_encoder
        self.optimizer.zero_grad()
        # Each process's gradient is that of its own part of the batch, and the processes' gradients are averaged.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        # The pull and the norm are in the weights' units: fp16's scale must be gone before.
        self.accelerator.unscale_gradients()
        if config.start_pull:
            pull_to_start(encoder, self.start, config.start_pull)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(encoder.parameters(), config.clip_norm)
        self.optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.averaged is None:
            return
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - self.config.ema)
            else:
                self.averaged[name].copy_(value)

    @contextmanager
    def result_weights(self) -> Iterator[None]:
        """The averaged weights in the network, where there are any, for the length of the block."""
        if self.averaged is None:
            yield
            return
        current = _copies(self.model.state_dict())
        self.model.load_state_dict(self.averaged)
        try:
            yield
        finally:
            self.model.load_state_dict(current)

    def movement(self) -> dict[str, dict[str, float]]:
        """How far the result is from the starting weights, by stage."""
        with self.result_weights():
            return movement(self.model.image_encoder, self.start)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
