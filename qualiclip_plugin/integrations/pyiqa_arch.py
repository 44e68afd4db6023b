"""The network pyiqa builds for its metrics of type ``QualiCLIP``: this project's model behind pyiqa's interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from qualiclip_plugin.models.backbones import backbone_config, build_tokenizer
from qualiclip_plugin.models.precision import exact_fp32, without_autocast
from qualiclip_plugin.models.prompt_learner import PromptLearner
from qualiclip_plugin.models.prompts import paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.runtimes import RUNTIMES, check_runtime, prepare_for_scoring
from qualiclip_plugin.scoring.local import check_device
from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.weights.checkpoint import build_model, build_text_side, load_prompt_learner, read_weights
from qualiclip_plugin.weights.loading import chosen_weights, load_cards, load_file, resolve


class PyiqaQualiCLIP(nn.Module):
    """QualiCLIP and QualiCLIP+ with the keyword arguments of pyiqa's own class.

    Args:
        model_type: ``qualiclip``, or one of the ``qualiclip+`` cards, which score with learned prompts.
        backbone: CLIP architecture of checkpoints that do not name their own.
        temperature: pyiqa's divisor of CLIP's logits.
        n_ctx: Context vectors of an untrained prompt learner.
        ctx_init: Words to start an untrained prompt learner from.
        prompt_specific_ctx: One learned context per prompt.
        pretrained: Load the learned prompts of ``model_type``; ``False`` starts them again, for training.
        pos_embedding: Add the attention pool's positional embedding.
        weights: Name or path of the image encoder's weights; ``None`` means the environment variable
            ``QUALICLIP_WEIGHTS`` or else ``official``.
        scale: ``"pyiqa"``, ``"authors"`` or a number (see ``checkpoint.build_model``).
        precision: ``fp32``, ``fp16`` or ``bf16``.
        runtime: ``eager``, ``openvino`` on the CPU, or ``cuda`` on the current GPU (see ``runtimes``).
        train_image_encoder: Keep the image encoder trainable and part of the state dictionary (``qualiclip`` only).

    Raises:
        WeightsError: The weights cannot be obtained, read or fitted to the architecture.
        ConfigError: The runtime is not available here.
    """

    def __init__(
        self,
        model_type: str = "qualiclip+",
        backbone: str = "RN50",
        temperature: float = 2,
        n_ctx: int = 16,
        ctx_init: str = "",
        prompt_specific_ctx: bool = True,
        pretrained: bool = True,
        pos_embedding: bool = False,
        *,
        weights: str | os.PathLike[str] | None = None,
        scale: str | float = "pyiqa",
        precision: str = "fp32",
        runtime: str = "eager",
        train_image_encoder: bool = False,
    ) -> None:
        super().__init__()
        plus = model_type.startswith("qualiclip+")
        if model_type != "qualiclip" and (not plus or model_type not in load_cards()):
            raise WeightsError(f"unknown model_type {model_type!r}: use 'qualiclip' or a QualiCLIP+ card")
        if plus and train_image_encoder:
            raise WeightsError("QualiCLIP+ learns prompts on a frozen encoder; train_image_encoder needs 'qualiclip'")
        card = load_cards().get(chosen_weights(weights))
        if card is not None and card.format == "prompt-learner":
            raise WeightsError(f"weights {card.name!r} are learned prompts; ask for the metric {card.name!r} instead")
        file, _ = load_file(weights)
        model = build_model(
            file,
            backbone=backbone,
            scale=scale,
            temperature=temperature,
            positional_embedding=pos_embedding,
            precision=precision,
        )
        self.model_type = model_type
        self.prompt_learner: PromptLearner | None = None
        self._plus_features: tuple[object, Tensor] | None = None
        # The frozen parts stay out of the state dictionary, as in pyiqa's class: a checkpoint of QualiCLIP+ holds
        # the prompt learner alone, one of QualiCLIP nothing, and pyiqa's trainer finds only what it may train.
        self._frozen: dict[str, Any] = {}
        if train_image_encoder:
            self.model = model
        else:
            # pyiqa moves a network once it is built; what this runtime prepares must be there already.
            needed = RUNTIMES[runtime].device if check_runtime(runtime) in RUNTIMES else ""
            place = check_device(needed or "cpu")
            self._frozen["model"] = prepare_for_scoring(model, runtime, place)
        if plus:
            if file.format == "plugin":
                raise WeightsError(f"{file.path} has no text encoder; QualiCLIP+ needs a whole CLIP")
            config = backbone_config(backbone)
            tower = build_text_side(file, config)
            self._frozen["text_tower"] = tower
            self.prompt_learner = (
                load_prompt_learner(read_weights(resolve(model_type)), tower, config)
                if pretrained
                else PromptLearner(
                    tower,
                    build_tokenizer(config),
                    n_ctx=n_ctx,
                    ctx_init=ctx_init,
                    prompt_specific_ctx=prompt_specific_ctx,
                )
            )
        self.eval()

    @property
    def quality_model(self) -> QualiCLIP:
        """The model that scores: image encoder, prompt features and scale."""
        return self._frozen.get("model") or self.model

    def forward(self, images: Tensor, attributes: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Score images (N, 3, H, W), RGB in [0, 1]: (N, 1) in [0, 1], higher is better.

        With ``attributes`` also a mapping prompt pair -> (N,).
        """
        # Settings of the whole process: a compiled graph has no place for them, and training has its own.
        free = self.training or torch.compiler.is_compiling()
        with nullcontext() if free else exact_fp32():
            features, model = self._learned_features(), self.quality_model
            # Of QualiCLIP+ the prompts are trained, and the frozen model does not know of it.
            score = model if features is None or not self.training else model.forward_unchecked
            return score(images, attributes=attributes, text_features=features)

    @torch.no_grad()
    def quality_map(
        self, images: Tensor, *, window: int | None = None, stride: int | None = None, attributes: bool = False
    ) -> Tensor:
        """:meth:`QualiCLIP.quality_map`; of a metric ``metric.net.quality_map``."""
        with exact_fp32():
            return self.quality_model.quality_map(
                images,
                window=window,
                stride=stride,
                attributes=attributes,
                text_features=self._learned_features(),
            )

    def _learned_features(self) -> Tensor | None:
        """Of QualiCLIP+, (P, 2, D); ``None`` stands for the features of the weights."""
        if (learner := self.prompt_learner) is None:
            return None
        tower = self._frozen["text_tower"]
        if self.training:
            return paired_features(learner(tower))
        # Constant while the context does not change: the text tower costs more than a small image.
        key = (learner.ctx._version, learner.ctx.data_ptr(), learner.ctx.device)
        if self._plus_features is None or self._plus_features[0] != key:
            # Whatever the caller's mode: features of one that knows no gradients or rounds could not serve another.
            with torch.inference_mode(False), torch.no_grad(), without_autocast(learner.ctx.device):
                self._plus_features = (key, paired_features(learner(tower)))
        return self._plus_features[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> PyiqaQualiCLIP:
        # Device moves reach the parts that are kept out of the state dictionary.
        for module in self._frozen.values():
            module._apply(fn, *args, **kwargs)
        self._plus_features = None
        return super()._apply(fn, *args, **kwargs)
