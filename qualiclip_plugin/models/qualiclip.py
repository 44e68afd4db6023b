"""QualiCLIP: image quality as similarity to antonym prompts.

Agnolucci, Galteri, Bertini, "Quality-Aware Image-Text Alignment for Opinion-Unaware Image Quality Assessment",
arXiv 2403.11176. The score of an image is the mean over P prompt pairs of the softmax over its scaled cosine
similarities to the positive and the negative prompt, taken at the positive one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, einsum, nn

from qualiclip_plugin.models.conv_towers import ConvTower
from qualiclip_plugin.models.precision import autocast, check_precision, without_autocast
from qualiclip_plugin.models.quality_map import chosen_windows, map_windows
from qualiclip_plugin.models.tiling import automatic_tile
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.images import to_float

MIN_SIZE = 32
"""Smallest height and width in pixels: the total stride of the convolutional towers."""
RANGE_TOLERANCE = 1e-3
"""How far values may lie outside [0, 1]: a quarter of a level of 8 bits, more than arithmetic in fp16 is off by."""
_PROBES = itertools.count(1.0)


def prompt_similarities(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine similarities of images to prompt pairs.

    Args:
        features: Image features of unit norm, (N, D).
        text_features: Prompt features of unit norm, (P, 2, D), positive first.

    Returns:
        Similarities in [-1, 1], (N, P, 2).
    """
    # Scores are differences of similarities times a large factor, which a caller's autocast would round away.
    with without_autocast(features.device):
        return einsum("nd,pkd->npk", features, text_features)


def pair_scores(similarities: Tensor, logit_scale: float) -> Tensor:
    """Probability of the positive prompt within each pair.

    Args:
        similarities: (N, P, 2), positive first.
        logit_scale: Factor on the similarities (not its logarithm).

    Returns:
        Scores in [0, 1], (N, P).
    """
    # The softmax over two entries is the sigmoid of their difference.
    return torch.sigmoid(logit_scale * (similarities[..., 0] - similarities[..., 1]))


class QualiCLIP(nn.Module):
    """An image tower, frozen prompt features and the score they give; in evaluation mode until ``train()``.

    Args:
        image_encoder: Normalised images (N, 3, H, W) -> features (N, D), any norm.
        text_features: Unit-norm prompt features (P, 2, D), positive first; kept as a buffer.
        logit_scale: Factor on the cosine similarities.
        mean: Per-channel mean of the image normalisation, RGB in [0, 1].
        std: Per-channel standard deviation of the same.
        attributes: P names, one per prompt pair.
        backbone: open_clip configuration of the image encoder, which travels with saved weights.
        precision: ``fp32``, ``fp16`` or ``bf16`` of the image tower; the score itself is fp32.
        tile_pixels: Images with more pixels are encoded in tiles of at most so many, which bounds the memory and
            leaves the score the same up to rounding (see ``tiling``). It applies to convolutional towers, in
            evaluation mode, without gradients; 0 chooses by the image, ``None`` never tiles.

    Examples:
        >>> from qualiclip_plugin.weights import load_model
        >>> model = load_model("lite")  # a QualiCLIP
        >>> model.attributes[:3], model.precision
        (('good_photo', 'sharp_image', 'sharp_edges'), 'fp32')
    """

    runtime = "eager"
    """What computes its convolutions; see ``runtimes``."""
    stays = False
    """Whether what a runtime prepared is bound to the device that it is on, in this type."""
    reads_bytes = True
    """Takes images as bytes too, and makes floats of one tile at a time: an eighth of the memory of large images."""
    text_features: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        text_features: Tensor,
        logit_scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        attributes: Sequence[str],
        *,
        backbone: Mapping[str, Any],
        precision: str = "fp32",
        tile_pixels: int | None = 0,
    ) -> None:
        super().__init__()
        self.tile_pixels = tile_pixels
        self.image_encoder = image_encoder
        self.logit_scale = float(logit_scale)
        self.attributes = tuple(attributes)
        self.backbone = dict(backbone)
        self._precision = check_precision(precision)
        self.register_buffer("text_features", text_features.detach().float(), persistent=False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.eval()  # not torch's default: a forward pass in training mode changes the statistics of BatchNorm

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16`` or ``bf16``; fixed, because the weights may be kept in it."""
        return self._precision

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> QualiCLIP:
        # A value that no memory holds by chance: `to_empty` gives tensors of the right kind without their content.
        probe = torch.full_like(self.mean, next(_PROBES))
        there = fn(probe)
        if self.stays and (there.device, there.dtype) != (probe.device, probe.dtype):
            raise ConfigError(f"a model that was prepared for {probe.device} stays there as it is: load another one")
        if there.dtype != probe.dtype:
            raise ConfigError(
                f"the weights cannot be made {there.dtype}: choose a precision when the model is loaded, "
                'as in load_model(..., precision="fp16")'
            )
        if not there.is_meta and (probe.is_meta or not torch.equal(there.cpu(), probe.cpu())):
            raise ConfigError("to_empty() would leave the model without its weights: move it with to(device)")
        return super()._apply(fn, *args, **kwargs)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images to unit-norm features.

        Args:
            images: RGB in [0, 1], or bytes 0..255, (N, 3, H, W), each side at least 32 pixels; one channel is taken
                as grey.

        Returns:
            (N, D), fp32.

        Raises:
            ImageError: The shape is not (N, 3, H, W), the type neither floating-point nor bytes, or an image is
                smaller than 32 x 32.

        Examples:
            >>> from qualiclip_plugin.utils.images import read_image
            >>> from qualiclip_plugin.weights import load_model
            >>> features = load_model("lite").encode_image(read_image("photo.png")[None])
            >>> features.shape
            torch.Size([1, 384])
        """
        check_images(images)
        with autocast(self._precision, images.device, self.image_encoder):
            features = self._encode_in_tiles(images)
            if features is None:
                features = self.image_encoder(self.normalise(images))
        features = features.float()
        return features / features.norm(dim=-1, keepdim=True)

    def normalise(self, images: Tensor) -> Tensor:
        """Images as :meth:`encode_image` takes them -> what the tower was trained on, (N, 3, H, W), channels last."""
        if images.dtype == torch.uint8:
            images = to_float(images)
        # The type of the network: images from NumPy are often in fp64, which its convolutions refuse.
        return ((images.to(self.mean.dtype) - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _encode_in_tiles(self, images: Tensor) -> Tensor | None:
        """The tower's features (N, D) of large images; ``None`` where tiles do not apply."""
        # A compiled or exported graph has no place for a number of tiles that depends on the image.
        if self.tile_pixels is None or self.training or torch.compiler.is_compiling():
            return None
        if not isinstance(self.image_encoder, ConvTower):
            return None
        pixels = images.shape[2] * images.shape[3]
        tile_pixels = self.tile_pixels or automatic_tile(self.image_encoder, pixels)
        if pixels <= tile_pixels or not self.image_encoder.can_tile():
            return None
        inputs = (images, *self.image_encoder.parameters())
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return None
        encode = partial(self.image_encoder.encode_in_tiles, normalise=self.normalise)
        return torch.cat([encode(image, tile_pixels=tile_pixels) for image in images.split(1)])

    def similarities(self, images: Tensor) -> Tensor:
        """Cosine similarities (N, P, 2) of images (N, 3, H, W) in [0, 1] to the prompt pairs."""
        return prompt_similarities(self.encode_image(images), self.text_features)

    def _pair_scores(self, images: Tensor, text_features: Tensor | None) -> Tensor:
        if text_features is None:
            similarities = self.similarities(images)
        else:
            similarities = prompt_similarities(self.encode_image(images), text_features)
        return pair_scores(similarities, self.logit_scale)

    def forward(
        self, images: Tensor, attributes: bool = False, text_features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Score images.

        Args:
            images: RGB in [0, 1], or bytes 0..255, (N, 3, H, W); whole images of any size from 32 x 32, neither
                resized nor cropped.
            attributes: Return the scores of the single prompt pairs too.
            text_features: Unit-norm prompt features (P, 2, D) in the place of the model's own.

        Returns:
            Scores in [0, 1], (N, 1), higher is better; with ``attributes`` also a mapping name -> (N,).

        Raises:
            ImageError: See :meth:`encode_image` and :func:`check_range`.

        Examples:
            >>> from qualiclip_plugin.utils.images import read_image
            >>> from qualiclip_plugin.weights import load_model
            >>> images = read_image("photo.png")[None]  # (1, 3, H, W)
            >>> scores, attributes = load_model("lite")(images, attributes=True)
            >>> f"{scores.item():.2f} {attributes['sharp_image'].item():.2f}"
            '0.97 0.99'
        """
        if not self.training:
            check_range(images)
        return self.forward_unchecked(images, attributes, text_features)

    def forward_unchecked(
        self, images: Tensor, attributes: bool = False, text_features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """:meth:`forward` without the check of the range, for which a GPU would wait in each step of a training."""
        pairs = self._pair_scores(images, text_features)
        score = pairs.mean(dim=1, keepdim=True)
        return (score, dict(zip(self.attributes, pairs.unbind(dim=1), strict=True))) if attributes else score

    @torch.no_grad()
    def quality_map(
        self,
        images: Tensor,
        *,
        window: int | None = None,
        stride: int | None = None,
        attributes: bool = False,
        text_features: Tensor | None = None,
    ) -> Tensor:
        """Score windows all over images, to show where they are good and where they are bad.

        Args:
            images: As :meth:`forward` takes them, all of one size.
            window: Side of a window in pixels, at least 32; ``None``: 96 for ``qualiclip-lite``, 224 for CLIP's
                towers. A window is at most as large as the image.
            stride: Pixels from one window to the next; ``None``: three quarters of a window.
            attributes: Return a map for every prompt pair, in the order of ``self.attributes``, not their mean.
            text_features: See :meth:`forward`.

        Returns:
            Scores in [0, 1], (N, 1, rows, columns), or (N, P, rows, columns) with ``attributes``: each value is the
            score of its window as an image. :func:`qualiclip_plugin.models.quality_map.window_starts` gives the
            places of the windows.

        Raises:
            ImageError: See :meth:`encode_image`.
            ConfigError: The window is too small, or the stride not positive.

        Examples:
            >>> import torch
            >>> from qualiclip_plugin.weights import load_model
            >>> load_model("lite").quality_map(torch.rand(1, 3, 200, 300)).shape
            torch.Size([1, 1, 3, 4])
        """
        check_images(images)
        check_range(images)
        window, stride = chosen_windows(self.image_encoder, window, stride)
        pairs = map_windows(images, lambda part: self._pair_scores(part, text_features), window, stride, MIN_SIZE)
        return pairs if attributes else pairs.mean(dim=1, keepdim=True)


def check_images(images: Tensor) -> None:
    """Raise ``ImageError`` unless ``images`` is (N, 3 or 1, H, W), of a known type, sides at least ``MIN_SIZE``."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ImageError(f"expected floating-point images in [0, 1] or bytes, got {images.dtype}")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ImageError(f"expected images of shape (N, 3, H, W), got {tuple(images.shape)}")
    height, width = images.shape[2:]
    if min(height, width) < MIN_SIZE:
        raise ImageError(f"image of {width}x{height} pixels is too small: each side needs at least {MIN_SIZE}")


def check_range(images: Tensor) -> None:
    """Refuse floating-point images with NaN or values outside [0, 1].

    This takes one pass over the images; with a GPU the program waits for it. There is no check if the images need a
    gradient, as in pyiqa (a generator overshoots, and a loss must not stop the device), or inside graphs, which
    cannot raise an error.

    Raises:
        ImageError: Gives the range of the values, and a remedy.
    """
    if not images.is_floating_point() or images.numel() == 0 or images.requires_grad or in_graph():
        return
    low, high = torch.stack(torch.aminmax(images)).tolist()
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return
    if math.isnan(low):
        raise ImageError("image values must be numbers in [0, 1]: some of these are nan")
    advice = "undo a normalisation, and clamp(0, 1) what resampling adds"
    if low >= 0 and 2 < high <= 255:
        advice = "divide 0..255 by 255, or give bytes (torch.uint8)"
    elif low >= -1 and high <= 1:
        advice = "of -1..1 take (images + 1) / 2"
    raise ImageError(f"image values must be in [0, 1], these go from {low:.4g} to {high:.4g}: {advice}")


def in_graph() -> bool:
    """Whether the code runs to become a graph: compiled, exported, traced, or recorded on a GPU."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
