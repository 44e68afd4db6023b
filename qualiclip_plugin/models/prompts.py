"""The seven antonym prompt pairs of QualiCLIP and their CLIP text features.

Source: the prompts of the authors' inference code (github.com/miccunifi/QualiCLIP) as pyiqa ships them. The
authors' own list lacks one comma and so holds 13 strings; the published checkpoint carries all 14 features,
which is what these pairs name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip.transformer import TextTransformer
    from torch import Tensor

PROMPT_PAIRS: tuple[tuple[str, str], ...] = (
    ("Good photo.", "Bad photo."),
    ("Sharp image.", "Blurry image."),
    ("Sharp edges.", "Blurry edges."),
    ("High-resolution image.", "Low-resolution image."),
    ("Noise-free image.", "Noisy image."),
    ("High-quality image.", "Low-quality image."),
    ("Good picture.", "Bad picture."),
)
"""(positive, negative), in the order of the published prompt features."""

ATTRIBUTES: tuple[str, ...] = (
    "good_photo",
    "sharp_image",
    "sharp_edges",
    "high_resolution",
    "noise_free",
    "high_quality",
    "good_picture",
)
"""One name per prompt pair: the column names of per-pair scores."""


def flat_prompts() -> list[str]:
    """All prompts in one list, positive and negative in turn: 2P strings for P pairs."""
    return [prompt for pair in PROMPT_PAIRS for prompt in pair]


def paired_features(features: Tensor) -> Tensor:
    """Arrange flat prompt features (2P, D) as unit-norm pairs (P, 2, D), positive first."""
    features = features / features.norm(dim=-1, keepdim=True)
    return features.reshape(-1, 2, features.shape[-1])


def encode_prompts(text_tower: TextTransformer, tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
    """Encode the P antonym prompt pairs with a frozen text tower.

    Args:
        text_tower: Token ids (2P, T) -> features (2P, D), such as open_clip's ``TextTransformer``.
        tokenizer: Strings -> token ids (2P, T).

    Returns:
        Unit-norm features (P, 2, D), detached.
    """
    return paired_features(text_tower(tokenizer(flat_prompts())).detach())
