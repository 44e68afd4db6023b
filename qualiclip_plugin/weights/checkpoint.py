"""Reading and writing weights: formats, safe loading, errors that name the file.

Four formats are recognised by the content of a file, never by its name:

=================  ==================================================================================
``plugin``         safetensors of this project: the image encoder, the prompt features and, as JSON in
                   the header, everything needed to build and score (architecture, mean/std, scale, card)
``official``       QualiCLIP's release: ``clip_model.*`` (a whole CLIP) and ``prompts_features`` (2P, D)
``clip``           an untuned CLIP: ``visual.*`` and the text tower
``prompt-learner`` QualiCLIP+ as pyiqa stores it: ``params`` with the prompt learner
=================  ==================================================================================

No path executes code from a file: safetensors, or what ``pickles`` reads.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from safetensors import safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder, build_text_tower, build_tokenizer
from qualiclip_plugin.models.prompt_learner import PromptLearner
from qualiclip_plugin.models.prompts import ATTRIBUTES, PROMPT_PAIRS, encode_prompts, paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError, WeightsError, first_line
from qualiclip_plugin.utils.json_yaml import check_json, parse_json
from qualiclip_plugin.weights.checks import DIGEST, HEADER_SCHEMA, digest, plain_tensors
from qualiclip_plugin.weights.pickles import load_pickle

FORMAT_VERSION = 1
HEADER = "qualiclip"
"""Key of this project's JSON in the safetensors metadata."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's normalisation, RGB in [0, 1]."""

OFFICIAL_BACKBONE = "RN50"
BACKBONE_KEYS = ("embed_dim", "vision_cfg", "quick_gelu", "positional_embedding")
"""What of a configuration builds the image side, and is stored with its weights."""
PYIQA_TEMPERATURE = 2.0
"""pyiqa divides CLIP's logits by this; scores of published leaderboards were made with it."""
AUTHORS_SCALE = 100.0
"""The fixed factor in the authors' own inference code."""


@dataclass(frozen=True)
class WeightsFile:
    """Tensors read from one file, with the format they were recognised as.

    Attributes:
        format: ``plugin``, ``official``, ``clip`` or ``prompt-learner``.
        tensors: Names and tensors, without the format's own wrapping.
        header: The JSON header of a ``plugin`` file; empty otherwise.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    header: dict[str, Any]


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a weights file of any supported format without running code from it.

    Raises:
        WeightsError: The file is missing, truncated, altered, of an unknown format, or a pickle that wants to
            run code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        with path.open("rb") as file:
            magic = file.read(9)
        if magic[8:9] == b"{":
            return _read_safetensors(path)
        return _classify(path, load_pickle(path))
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} was refused: it is not a plain file of tensors and loading it could run code from it"
        ) from error
    except Exception as error:  # damaged bytes raise whatever they please
        raise WeightsError(
            f"{path} is not a readable weights file (truncated or altered?): {first_line(error)}"
        ) from error


def _read_safetensors(path: Path) -> WeightsFile:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata() or {}
    if HEADER not in metadata:
        return _classify(path, tensors)
    header = parse_json(metadata[HEADER], WeightsError, f"{path} has no usable header")
    if header.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {header.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    if header.get(DIGEST, (found := digest(header, tensors))) != found:
        raise WeightsError(f"{path} was altered after it was written (its sha256 differs); fetch or make it again")
    return WeightsFile(path, "plugin", plain_tensors(path, tensors), header)


def _classify(path: Path, content: Any) -> WeightsFile:
    tensors = plain_tensors(path, content)
    if "prompts_features" in tensors and any(key.startswith("clip_model.") for key in tensors):
        return WeightsFile(path, "official", {k.removeprefix("clip_model."): v for k, v in tensors.items()}, {})
    if "prompt_learner.ctx" in tensors:
        return WeightsFile(
            path, "prompt-learner", {k.removeprefix("prompt_learner."): v for k, v in tensors.items()}, {}
        )
    if "token_embedding.weight" in tensors and any(key.startswith("visual.") for key in tensors):
        return WeightsFile(path, "clip", tensors, {})
    keys = ", ".join(list(tensors)[:3])
    raise WeightsError(f"{path} is no QualiCLIP, CLIP or prompt-learner file (its first keys: {keys})")


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``module``; every name and shape must agree; errors as :func:`check_fit`."""
    check_fit(module, tensors, path)
    wanted = module.state_dict()
    module.load_state_dict({**{key: wanted[key] for key in wanted if _is_counter(key)}, **tensors})


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare names and shapes of ``tensors`` with those of ``module``.

    Raises:
        WeightsError: Names the file and the first tensor that is missing, left over or of another shape.
    """
    wanted = module.state_dict()
    for key in wanted:
        if key not in tensors and not _is_counter(key):
            raise WeightsError(f"{path} does not fit the architecture: it lacks {key}")
    for key, value in tensors.items():
        if key not in wanted:
            raise WeightsError(f"{path} does not fit the architecture: it has {key}, which the network lacks")
        if value.shape != wanted[key].shape:
            raise WeightsError(
                f"{path} does not fit the architecture: {key} is {tuple(value.shape)}, the network has "
                f"{tuple(wanted[key].shape)}"
            )


def _is_counter(key: str) -> bool:
    # A count of training batches says nothing about the function; some files leave it out.
    return key.endswith("num_batches_tracked")


def build_text_side(file: WeightsFile, config: dict[str, Any]) -> TextTransformer:
    """The frozen text tower of an ``official`` or ``clip`` file."""
    tower = build_text_tower(config).float()
    apart = ("visual.", "logit_scale", "prompts_features", "input_resolution", "context_length", "vocab_size")
    text = {key: value for key, value in file.tensors.items() if not key.startswith(apart)}
    load_strictly(tower, text, file.path)
    return tower


def build_model(
    file: WeightsFile,
    *,
    backbone: str = OFFICIAL_BACKBONE,
    scale: str | float = "pyiqa",
    temperature: float = PYIQA_TEMPERATURE,
    positional_embedding: bool = False,
    prompt_learner: WeightsFile | None = None,
    precision: str = "fp32",
) -> QualiCLIP:
    """Build the network a weights file describes, in fp32 on the CPU, ready to be trained.

    Args:
        file: A ``plugin``, ``official`` or ``clip`` file.
        backbone: Architecture of ``official`` and ``clip`` files (a ``plugin`` file carries its own).
        scale: ``"pyiqa"``: exp(logit_scale) of the file over ``temperature``, or the factor stored in a ``plugin``
            file; ``"authors"``: 100, the authors' code; or a number.
        temperature: See ``scale``.
        positional_embedding: Add the attention pool's positional embedding (off in QualiCLIP).
        prompt_learner: QualiCLIP+: a ``prompt-learner`` file whose prompts replace the file's features.
        precision: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        WeightsError: The file does not fit the architecture, or has no prompts and no text tower; or an option was
            chosen that a ``plugin`` file carries itself.
    """
    if file.format == "plugin":
        chosen = {
            "backbone": backbone != OFFICIAL_BACKBONE,
            "temperature": temperature != PYIQA_TEMPERATURE,
            "positional_embedding": positional_embedding,
            "prompt_learner": prompt_learner is not None,
        }
        if names := [name for name, so in chosen.items() if so]:
            raise WeightsError(f"{file.path} carries all that it needs: {', '.join(names)} cannot be chosen for it")
        return _build_from_plugin(file, scale, precision)
    if file.format == "prompt-learner":
        raise WeightsError(f"{file.path} holds only learned prompts; it needs the QualiCLIP encoder they belong to")
    config = backbone_config(backbone) | ({"positional_embedding": True} if positional_embedding else {})
    visual = {key.removeprefix("visual."): v for key, v in file.tensors.items() if key.startswith("visual.")}
    encoder = _filled_encoder(config, visual, file.path)
    return QualiCLIP(
        encoder,
        _text_features(file, config, prompt_learner),
        _clip_scale(file, scale, temperature),
        CLIP_MEAN,
        CLIP_STD,
        ATTRIBUTES,
        backbone={key: config[key] for key in BACKBONE_KEYS if key in config},
        precision=precision,
    )


def _text_features(file: WeightsFile, config: dict[str, Any], prompt_learner: WeightsFile | None) -> Tensor:
    if prompt_learner is not None:
        tower = build_text_side(file, config)
        learner = load_prompt_learner(prompt_learner, tower, config)
        with torch.no_grad():
            return paired_features(learner(tower))
    if file.format == "official":
        features, shape = file.tensors["prompts_features"].float(), (2 * len(PROMPT_PAIRS), config["embed_dim"])
        if features.shape != shape:
            raise WeightsError(f"{file.path} has prompt features of shape {tuple(features.shape)}, not {shape}")
        return paired_features(features)
    with torch.no_grad():
        return encode_prompts(build_text_side(file, config), build_tokenizer(config))


def load_prompt_learner(file: WeightsFile, text_tower: TextTransformer, config: dict[str, Any]) -> PromptLearner:
    """Build the prompt learner of a ``prompt-learner`` file on a text tower.

    Raises:
        WeightsError: The file is of another format or its shapes do not fit the tower.
    """
    if file.format != "prompt-learner":
        raise WeightsError(f"{file.path} holds no learned prompts (it is a {file.format} file)")
    context = file.tensors["ctx"]
    length = config["text_cfg"].get("context_length", 77)
    if context.dim() not in (2, 3) or not 0 < context.shape[-2] < length:
        raise WeightsError(f"{file.path} has learned prompts of shape {tuple(context.shape)}")
    try:
        learner = PromptLearner(
            text_tower, build_tokenizer(config), n_ctx=context.shape[-2], prompt_specific_ctx=context.dim() == 3
        )
    except ConfigError as error:
        raise WeightsError(f"{file.path} has learned prompts that do not fit: {error}") from error
    load_strictly(learner, {key: value.float() for key, value in file.tensors.items()}, file.path)
    return learner


def _clip_scale(file: WeightsFile, scale: str | float, temperature: float) -> float:
    if scale != "pyiqa" and temperature != PYIQA_TEMPERATURE:
        raise WeightsError(f"temperature divides the scale 'pyiqa'; with scale {scale!r} it has no effect")
    if scale == "authors":
        return AUTHORS_SCALE
    if scale == "pyiqa":
        if "logit_scale" not in file.tensors:
            raise WeightsError(f"{file.path} does not fit the architecture: it lacks logit_scale")
        logarithm = file.tensors["logit_scale"]
        if logarithm.numel() != 1 or not abs(float(logarithm)) < 100:
            raise WeightsError(f"{file.path} has no usable logit_scale")
        return math.exp(float(logarithm)) / temperature
    return _number(scale)


def _number(scale: str | float) -> float:
    if isinstance(scale, str) or not 0 < scale < math.inf:
        raise WeightsError(f"unknown scale {scale!r}: use 'pyiqa', 'authors' or a positive number")
    return float(scale)


def _build_from_plugin(file: WeightsFile, scale: str | float, precision: str) -> QualiCLIP:
    header = file.header
    if scale == "authors":
        raise WeightsError(f"{file.path} carries its own scale; 'authors' belongs to the official checkpoint")
    check_json(header, HEADER_SCHEMA, WeightsError, f"{file.path} has no usable header")
    tensors = dict(file.tensors)
    try:
        features = tensors.pop("text_features").float()
    except KeyError as error:
        raise WeightsError(f"{file.path} is incomplete: it lacks {error}") from error
    shape = (len(header["attributes"]), 2, header["backbone"]["embed_dim"])
    if features.shape != shape:
        raise WeightsError(f"{file.path} has prompt features of shape {tuple(features.shape)}, not {shape}")
    visual = {key.removeprefix("image_encoder."): value for key, value in tensors.items()}
    return QualiCLIP(
        _filled_encoder(header["backbone"], visual, file.path),
        features,
        header["logit_scale"] if scale == "pyiqa" else _number(scale),
        header["mean"],
        header["std"],
        header["attributes"],
        backbone=header["backbone"],
        precision=precision,
    )


def _filled_encoder(config: dict[str, Any], tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build the image tower of a configuration and load tensors into it."""
    try:
        # First without memory: a header may ask for a network of any size, its file has tensors for one.
        with torch.device("meta"):
            check_fit(build_image_encoder(config), tensors, path)
        encoder = build_image_encoder(config).float()  # whatever torch's default type is
    except QualiCLIPError:
        raise
    except Exception as error:  # what open_clip and timm make of settings they do not know
        raise WeightsError(f"{path}: its architecture cannot be built: {first_line(error)}") from error
    load_strictly(encoder, {key: value.float() for key, value in tensors.items()}, path)
    return encoder


def save_checkpoint(
    path: str | os.PathLike[str],
    model: QualiCLIP,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model with its card in this project's format, atomically.

    Args:
        model: A trainable model (BatchNorm not folded).
        card: What people should know: training data, configuration, date, figures, licence. JSON-serialisable.
        dtype: Storage type of floating-point matrices and kernels; vectors, which are few, stay as they are.

    Raises:
        WeightsError: The model is no longer what its architecture says, as after folding BatchNorm for inference; or
            the card or the scale holds a number that is not finite, which no reader would accept.
    """
    encoder = model.image_encoder.state_dict()
    with torch.device("meta"):
        check_fit(build_image_encoder(model.backbone), encoder, Path(path))
    header = {
        "format_version": FORMAT_VERSION,
        "backbone": model.backbone,
        "logit_scale": model.logit_scale,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "attributes": list(model.attributes),
        "card": dict(card),
    }
    tensors = {f"image_encoder.{key}": value for key, value in encoder.items()}
    tensors["text_features"] = model.text_features
    stored = {
        key: value.detach()
        .cpu()
        .to(dtype if value.is_floating_point() and value.dim() > 1 else value.dtype)
        .contiguous()
        for key, value in tensors.items()
        if not key.endswith("num_batches_tracked")
    }
    header[DIGEST] = digest(header, stored)
    try:
        text = json.dumps(header, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise WeightsError(f"{path} was not written: its header cannot be stored: {first_line(error)}") from error
    with atomic_write(path) as file:
        file.write(save_safetensors(stored, metadata={HEADER: text}))
