"""Weight names: what they mean, where their files are, how they are fetched and verified.

A weight is chosen in this order: the explicit argument (a card's name or a path), the environment variable
``QUALICLIP_WEIGHTS``, the default ``official``. No weights ever replace others. The commands that score and export
have ``lite`` as their own default and need no download.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from qualiclip_plugin.utils.config import build
from qualiclip_plugin.utils.download import DownloadError, download, is_offline, verify
from qualiclip_plugin.utils.environment import user_cache
from qualiclip_plugin.utils.errors import ConfigError, WeightsError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from qualiclip_plugin.models.qualiclip import QualiCLIP
    from qualiclip_plugin.weights.checkpoint import WeightsFile

PACKAGE = Path(__file__).parents[1]
DEFAULT_WEIGHTS = "official"
ENVIRONMENT_VARIABLE = "QUALICLIP_WEIGHTS"
LARGEST_BYTES = 2**34
"""Of a weight file that is downloaded."""


@dataclass(frozen=True)
class Card:
    """What is known of one named weight file.

    Attributes:
        name: The name users give.
        description: One line.
        file: File name in the weight cache, as pyiqa writes it, or inside the package.
        format: ``plugin``, ``official``, ``clip`` or ``prompt-learner`` (see ``checkpoint``).
        licence: Licence of the weights.
        training_data: What they were trained on.
        opinion_aware: Whether human opinion scores entered the training.
        seen: Datasets whose scores the weights have seen.
        chosen_on: Datasets whose scores chose between variants of the weights, without entering their training.
        addresses: Where the file can be fetched, tried in order.
        packaged: The file ships inside this package.
        backbone: Architecture of formats that do not carry their own.
        base: Card of the encoder that a prompt learner needs.
        sha256: Expected hash, where known.
    """

    name: str
    description: str
    file: str
    format: str
    licence: str
    training_data: tuple[str, ...]
    opinion_aware: bool
    seen: tuple[str, ...] = ()
    chosen_on: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    packaged: bool = False
    backbone: str = "RN50"
    base: str | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """Where the file is, or would be once fetched: named as pyiqa does, or without an address's signs."""
        folder = PACKAGE / "assets" if self.packaged else cache_folder()
        named, plain = folder / self.file, folder / unquote(self.file)
        return plain if plain.exists() and not named.exists() else named


@cache
def load_cards() -> Mapping[str, Card]:
    """All cards of ``cards.toml`` by name."""
    with (PACKAGE / "weights" / "cards.toml").open("rb") as file:
        table = tomllib.load(file)
    return {name: _card(name, row) for name, row in table.items()}


def _card(name: str, row: Mapping[str, Any]) -> Card:
    return build(Card, {**row, "name": name}, lambda _: f"cards.toml: [{name}]")


def get_card(name: str) -> Card:
    """The card of a name.

    Raises:
        WeightsError: The name is unknown; near names are suggested.
    """
    cards = load_cards()
    if name in cards:
        return cards[name]
    hint = did_you_mean(name, cards) or f" (known names: {', '.join(cards)})"
    raise WeightsError(f"unknown weights {name!r}: neither a known name nor a file{hint}")


def cache_folder() -> Path:
    """pyiqa's weight cache, ``$TORCH_HOME/hub/pyiqa``: files fetched by either are used by both."""
    home = os.environ.get("TORCH_HOME")
    return (Path(os.path.expanduser(home)) if home else user_cache() / "torch") / "hub" / "pyiqa"


def chosen_weights(weights: str | os.PathLike[str] | None) -> str:
    """Apply the order of choice: the argument, the environment variable, the default."""
    return os.fspath(weights) if weights else os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_WEIGHTS


def resolve(weights: str | os.PathLike[str] | None = None) -> Path:
    """Find the file of a weight name or path, fetching and verifying it where needed.

    Args:
        weights: A card's name, a path, or ``None`` for the environment variable or the default.

    Raises:
        WeightsError: The name is unknown, the file cannot be obtained, or its content is not the expected one.
    """
    chosen = chosen_weights(weights)
    if chosen not in load_cards() and Path(chosen).is_file():
        return Path(chosen)
    return fetch(chosen)


def fetch(card: Card | str) -> Path:
    """The file of a card or its name: in the package, or in the cache, downloaded where it is missing.

    Raises:
        WeightsError: No address could serve the file, or its content differs from the card's hash or the one recorded
            when it was first seen; the file is named and left as it is.
    """
    card = get_card(card) if isinstance(card, str) else card
    if card.packaged:
        return card.path
    if not card.path.exists():
        _download(card)
    try:
        verify(card.path, card.sha256 or "")
    except DownloadError as error:
        raise WeightsError(str(error)) from error
    return card.path


def _download(card: Card) -> None:
    reasons = []
    for address in () if is_offline() else card.addresses:
        try:
            download(address, card.path, sha256=card.sha256 or "", limit=LARGEST_BYTES, check=_check_weights)
            return
        except (OSError, DownloadError) as error:
            reasons.append(f"  {error}")
    if is_offline():
        reasons = ["  HF_HUB_OFFLINE is set, nothing was fetched"]
    lines = [
        f"the weights {card.name!r} are not here and could not be fetched:",
        *reasons,
        "To provide them yourself, download",
        *(f"  {address}" for address in card.addresses),
        "and save it as",
        f"  {card.path}",
        'or use weights="lite" (the metric qualiclip-lite), which ships with this package and works offline.',
    ]
    raise WeightsError(*lines)


def _check_weights(path: Path) -> None:
    # Before the file gets its name: an error page must not become a weight file.
    from qualiclip_plugin.weights.checkpoint import read_weights

    try:
        read_weights(path)
    except WeightsError as error:
        raise WeightsError("what the server sent is no weights file") from error


def load_file(weights: str | os.PathLike[str] | None = None) -> tuple[WeightsFile, Card | None]:
    """Resolve and read a weight name or path; the card is ``None`` for a plain path."""
    from qualiclip_plugin.weights.checkpoint import read_weights

    chosen = chosen_weights(weights)
    path = resolve(chosen)
    return read_weights(path), load_cards().get(chosen)


def load_model(
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    inference: bool = True,
    runtime: str = "eager",
    tile_pixels: int = 0,
    **options: Any,
) -> QualiCLIP:
    """Load QualiCLIP from a weight name or path.

    Args:
        weights: A card's name (``qualiclip weights list``), a path, or ``None`` for the environment variable
            ``QUALICLIP_WEIGHTS`` or else ``official``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ...
        precision: ``fp32``, ``fp16`` or ``bf16``.
        inference: Freeze and optimise for scoring; ``False`` gives the plain network for training.
        runtime: ``eager``, ``openvino``, ``cuda`` or ``auto`` (see ``runtimes``); for inference only.
        tile_pixels: Larger images are computed in tiles of at most this many pixels, to bound the memory; 0 chooses.
        **options: ``scale``, ``temperature``, ``backbone``, ``positional_embedding`` of ``checkpoint.build_model``.

    Raises:
        WeightsError: The weights cannot be obtained, read or fitted to the architecture.
        ConfigError: The runtime, precision or tile size is not available here.

    Examples:
        >>> import torch
        >>> from qualiclip_plugin.weights import load_model
        >>> model = load_model("lite")
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1])
    """
    import torch

    from qualiclip_plugin.models.conv_towers import ConvTower
    from qualiclip_plugin.models.tiling import check_tile
    from qualiclip_plugin.runtimes import check_runtime, prepare_for_scoring
    from qualiclip_plugin.weights.checkpoint import build_model, read_weights

    if check_runtime(runtime) != "eager" and not inference:
        raise ConfigError(f"the runtime {runtime!r} cannot be trained: load with inference=True")

    file, card = load_file(weights)
    learner = None
    if card is not None:
        options.setdefault("backbone", card.backbone)
        if card.base is not None:
            file, learner = read_weights(resolve(card.base)), file
    model = build_model(file, prompt_learner=learner, precision=precision, **options)
    if tile_pixels:
        tower = model.image_encoder
        model.tile_pixels = check_tile(tile_pixels, tower.smallest_tile() if isinstance(tower, ConvTower) else 0)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return prepare_for_scoring(model, runtime, device) if inference else model.to(device)
