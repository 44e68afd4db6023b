"""Tune a fitted head to pictures of your own kind, from pristine pictures only.

The trunk stays as it is, so its pooled features of degraded crops are computed once, as for :mod:`.head_fit`. The
head that the weights bring then learns to order these ladders, and goes ``share`` of the way it would go: what it
knows of other pictures lies in where it started (Wortsman et al., arXiv 2109.01903: the same of whole networks).

Ladders of held-out pictures, and of photographs inside scikit-image as the control, are looked at before and after.
Where either is ordered clearly worse, the head goes half as far, and then stays where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from qualiclip_plugin.models.conv_towers import StagePoolTower
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.lite.config import HeadConfig
from qualiclip_plugin.training.lite.head_ranking import HiddenLayer, ladder_loss, minimise
from qualiclip_plugin.training.lite.ladder_features import LadderFeatures, collect_ladders, stage_pool_tower
from qualiclip_plugin.training.photos import SKIMAGE, Photos, open_photos
from qualiclip_plugin.training.seeds import derive_seed, preserved_generators
from qualiclip_plugin.training.validation import held_out_crops
from qualiclip_plugin.utils.errors import ConfigError

TOLERANCE = 0.02
"""Share by which the loss of a check may rise: a few pictures do not tell less from chance."""
CHECKED_BATCHES = 12
"""Batches of ladders of held-out pictures, and of the control."""


def adapt_head(
    model: QualiCLIP,
    crops: Iterable[Tensor],
    held_out: Tensor | None,
    config: TrainConfig,
    device: torch.device,
    notice: Callable[[int], None],
) -> str:
    """Tune the head of ``model`` in place, or leave it as it is where nothing is gained.

    Args:
        model: A network whose image encoder is a ``StagePoolTower`` with a hidden layer.
        crops: Crop pairs of step 0, 1, ..., uint8 (B, 2, 3, S, S).
        held_out: Pristine crops of other pictures of the kind, (N, 3, S, S) in [0, 1].
        config: Degradations and ``head``.
        device: Where the trunk's features are computed; the rest runs on the CPU.

    Returns:
        What was gained, in a sentence.

    Raises:
        ConfigError: No picture is held out, or the network has another tower or no hidden layer.
    """
    if config.head is None or held_out is None:
        raise ConfigError("head: tuning needs held-out pictures: set validation_photos to at least 1")
    if stage_pool_tower(model).hidden is None:
        raise ConfigError("head: only a tower with a hidden layer can be tuned")

    seen = collect_ladders(model, crops, config, config.head.encoded, device, notice)
    checks = {
        name: collect_ladders(
            model, _batches(pictures, config.batch_size), config, config.head.encoded, device, lambda done: None
        )
        for name, pictures in {
            "held-out pictures": held_out,
            "photographs of scikit-image": _control(held_out.shape[-1]),
        }.items()
    }
    return tune(model, seen, checks, config)


def _control(size: int) -> Tensor:
    photos = open_photos(SKIMAGE)
    assert isinstance(photos, Photos)  # noqa: S101 (narrows the type: files are no stream)
    return held_out_crops([photos.read(place) for place in range(len(photos))], size)


def _batches(crops: Tensor, size: int) -> Iterator[Tensor]:
    """Pairs of one crop each, uint8 (B, 2, 3, S, S), all crops in turn."""
    pixels = (crops * 255).round().to(torch.uint8)
    for batch in range(CHECKED_BATCHES):
        rows = torch.arange(batch * size, (batch + 1) * size) % len(pixels)
        yield pixels[rows][:, None].expand(-1, 2, -1, -1, -1)


def tune(model: QualiCLIP, seen: LadderFeatures, checks: dict[str, LadderFeatures], config: TrainConfig) -> str:
    """Tune the head to ladders and keep what the checks allow.

    Args:
        model: Its head and hidden layer change, or stay as they are.
        checks: Name -> ladders that must not be ordered clearly worse.

    Returns:
        What was gained, in a sentence.
    """
    head = config.head
    assert head is not None  # noqa: S101 (narrows the type)
    start = deepcopy(model.image_encoder.state_dict())
    before = {name: _loss(model, ladders, head) for name, ladders in checks.items()}
    tuned = _train(model, seen, config)
    for share in (head.share, head.share / 2):
        tuned.write(stage_pool_tower(model), share)
        after = {name: _loss(model, ladders, head) for name, ladders in checks.items()}
        changes = ", ".join(f"{name} {before[name]:.3f} to {after[name]:.3f}" for name in checks)
        if all(after[name] <= before[name] * (1 + TOLERANCE) for name in checks):
            return f"the head went {share:g} of the way; loss of ladders: {changes}"
        model.image_encoder.load_state_dict(start)
    return f"nothing was gained, the weights stay as they were; loss of ladders would have gone: {changes}"


@torch.no_grad()
def _loss(model: QualiCLIP, ladders: LadderFeatures, head: HeadConfig) -> float:
    """How badly ladders are ordered, as the network itself scores them."""
    crops = ladders.crops
    features = stage_pool_tower(model).project(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
    prompts = model.text_features
    logits = nn.functional.normalize(features, dim=-1) @ (prompts[:, 0] - prompts[:, 1]).T
    return float(ladder_loss(model.logit_scale * logits, ladders.relevant, head))


class _TunedHead(nn.Module):
    """The head's qualities, and how they move: a copy of the hidden layer and a step of the linear part.

    Features are qualities through the pseudo-inverse of the prompts' differences (:mod:`.head_fit`), so their
    products with the differences are the qualities again.
    """

    def __init__(self, model: QualiCLIP, seen: LadderFeatures, dropout: float) -> None:
        super().__init__()
        tower = stage_pool_tower(model)
        hidden = tower.hidden
        assert hidden is not None  # noqa: S101 (narrows the type)
        prompts = model.text_features.double()
        difference = prompts[:, 0] - prompts[:, 1]
        self.inverse = torch.linalg.pinv(difference)
        weight, bias = difference @ tower.head.weight.double(), difference @ tower.head.bias.double()
        inputs = hidden.in_features
        self.linear = weight[:, :inputs].detach()
        self.layer = HiddenLayer(inputs, hidden.out_features, len(weight), dropout)
        self.layer.hidden.load_state_dict(hidden.state_dict())
        self.layer.out.load_state_dict({"weight": weight[:, inputs:].float(), "bias": bias.float()})
        self.before = deepcopy(self.layer.state_dict())
        self.step = nn.Linear(inputs, len(weight), bias=False)
        nn.init.zeros_(self.step.weight)
        self.mean, self.deviation = seen.features.mean((0, 1)), seen.features.std((0, 1)) + 1e-6

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (..., C) -> qualities (..., P)."""
        base = (features.double() @ self.linear.T).float()
        return base + self.layer(features) + self.step((features - self.mean) / self.deviation)

    @torch.no_grad()
    def write(self, tower: StagePoolTower, share: float) -> None:
        """Move a tower that still has the head this one started from a share of the way to it."""
        moved = {name: share * (value - self.before[name]) for name, value in self.layer.state_dict().items()}
        step = share * self.step.weight / self.deviation
        weight = torch.cat([step, moved["out.weight"]], dim=1).double()
        tower.head.weight.add_(self.inverse @ weight)
        tower.head.bias.add_(self.inverse @ (moved["out.bias"] - step @ self.mean).double())
        assert tower.hidden is not None  # noqa: S101 (narrows the type)
        tower.hidden.weight.add_(moved["hidden.weight"])
        tower.hidden.bias.add_(moved["hidden.bias"])


def _train(model: QualiCLIP, seen: LadderFeatures, config: TrainConfig) -> _TunedHead:
    head = config.head
    assert head is not None  # noqa: S101 (narrows the type)
    crops = seen.crops
    with preserved_generators():
        torch.manual_seed(derive_seed(config.seed, "head"))
        tuned = _TunedHead(model, seen, head.dropout)
        minimise(tuned, lambda rows: ladder_loss(tuned(crops[rows]), seen.relevant[rows], head), len(crops), head)
    return tuned.eval()
