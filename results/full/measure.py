"""What can be shown of the recipe ``paper`` without CLIP's weights: does it order, what does it reach, what moves.

    python -m results.full.measure --photos FOLDER

Writes ``README.md`` beside this file. Every fifth photograph is held out. CLIP's RN50 starts from seeded random
weights in the format of the official ones, EfficientNet-Lite0 from its ImageNet weights (see ``configs/lite.yaml``
for the packages that bring them).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from harness.statistics.intervals import t_half_width
from qualiclip_plugin.models.qualiclip import QualiCLIP, prompt_similarities
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.draws import draw_crops, plan_of
from qualiclip_plugin.training.layers import set_training_mode, stages
from qualiclip_plugin.training.lite.start import LITE_START, starting_model
from qualiclip_plugin.training.objective import objective, ranking_accuracy
from qualiclip_plugin.training.optimizer import build_optimizer
from qualiclip_plugin.training.sampling import degrade
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.utils.environment import processor_name, versions
from qualiclip_plugin.utils.images import images_in, read_image, to_float
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.untrained import write_official

HERE = Path(__file__).parent
SMALL = [
    "cpu=true",
    "workers=1",
    "check_photos=false",
    "validation_photos=0",
    "batch_size=4",
    "crop_size=64",
]
"""What makes ``paper`` small enough for a CPU."""
LOSSES = {
    "all three losses": [],
    "ranking alone": ["consistency_weight=0"],
    "consistency alone": ["positive_weight=0", "negative_weight=0"],
}
RATE, STEPS = 3e-4, 30
"""Of the runs that are to learn: random weights are no place for steps of 1e-9."""
RATES = (1e-9, 1e-7, 1e-5)
MOVES = 10
"""Steps after which it is counted which weights moved."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of good photographs")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=HERE / "README.md", help="the page that is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = images_in([str(arguments.photos)])
    with tempfile.TemporaryDirectory() as folder:
        seen, held_out = Path(folder) / "seen", files[::5]
        seen.mkdir()
        for file in sorted({*files} - {*held_out}):
            (seen / file.name).symlink_to(file.absolute())
        config = load_config("paper", SMALL)
        crops = crop_pairs(held_out, config)
        random = Path(folder) / "random.pth"
        write_official(random, crops[:4, 0])
        starts = {"CLIP RN50, random": str(random), "EfficientNet-Lite0, ImageNet": LITE_START}
        values = {
            "order": table(order(starts, seen, crops, arguments.steps, Path(folder))),
            "reach": table(reach(load_model(str(random), inference=False), crops[:2], config), floatfmt=".3g"),
            "moved": table(moved(load_model(str(random), inference=False), crops[:1], config), floatfmt=".3g"),
        }
    numbers = {"steps": arguments.steps, "seen": len(files) - len(held_out), "held_out": len(held_out)}
    text = Template((HERE / "README.template.md").read_text()).substitute(
        values, **numbers, rate=f"{RATE:g}", moves=MOVES, made=made()
    )
    arguments.output.write_text(text)


def table(rows: list[dict[str, Any]], floatfmt: str = ".3f") -> str:
    """Rows as Markdown."""
    return pd.DataFrame(rows).to_markdown(index=False, floatfmt=floatfmt)


def made() -> str:
    """When, where and with which versions."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{time.strftime('%Y-%m-%d')}, one thread of {processor_name()}, {named}"


def crop_pairs(files: list[Path], config: TrainConfig) -> Tensor:
    """Two overlapping crops of each photograph, (N, 2, 3, S, S) in [0, 1]."""
    pairs = [
        draw_crops(read_image(file), config, generator(config.seed, "held-out", place))
        for place, file in enumerate(files)
    ]
    return to_float(torch.stack(pairs))


def order(starts: dict[str, str], photos: Path, crops: Tensor, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train from every start with all losses and with some, and look at ladders of held-out photographs."""
    rows = []
    for start, weights in starts.items():
        model = starting_model() if weights == LITE_START else load_model(weights, inference=False)
        rows.append({"start": start, "trained with": "nothing", **held_out_figures(model, crops)})
        # What all three together do not order, parts of them are not tried on: a step of RN50 takes seconds.
        for name, changes in list(LOSSES.items())[: len(LOSSES) if weights == LITE_START else 1]:
            settings = [f"weights={weights}", f"learning_rate={RATE}", f"steps={steps}", *changes]
            run = folder / "run"
            result = train(load_config("paper", [*SMALL, *settings]), str(photos), str(run))
            model = load_model(str(result.model), inference=False)
            shutil.rmtree(run)
            rows.append({"start": start, "trained with": name, **held_out_figures(model, crops)})
            print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def held_out_figures(model: QualiCLIP, crops: Tensor) -> dict[str, Any]:
    """The losses of ``paper`` on ladders of photographs that were not trained on, and how many pairs are in order."""
    config = load_config("paper", SMALL)
    similarities = encoded(model.eval(), crops, config)
    _, parts = objective(similarities, config)
    accuracy = ranking_accuracy(similarities).double().numpy()
    half = t_half_width(accuracy)
    return {
        "pairs of levels in order": f"{accuracy.mean():.3f} (± {half:.3f})",
        "consistency loss": parts["consistency"].item(),
        "ranking losses": (parts["positive"] + parts["negative"]).item(),
    }


def encoded(model: QualiCLIP, crops: Tensor, config: TrainConfig) -> Tensor:
    """Similarities of degraded crops, one kind a photograph as the recipe draws it, (N, 2, L, P, 2)."""
    plan = plan_of(config, len(crops), generator(config.seed, "held-out plan"))
    images = degrade(crops, plan)
    features = torch.cat([model.encode_image(part).float() for part in images.flatten(0, 2).split(40)])
    return prompt_similarities(features, model.text_features).unflatten(0, images.shape[:3])


def reach(model: QualiCLIP, crops: Tensor, config: TrainConfig) -> list[dict[str, Any]]:
    """By stage of the network: in how many of its weights the gradient arrives, in fp32 and under bf16 autocast."""
    rows: dict[str, dict[str, Any]] = {}
    for precision in ("fp32", "bf16"):
        gradients = gradient(model, crops, config, precision)
        for stage, names in stages(model.image_encoder).items():
            found = [gradients[name] for name in names if gradients[name] is not None]
            values = torch.cat([value.flatten() for value in found])
            row = rows.setdefault(stage, {"stage": stage, "weights": sum(value.numel() for value in found)})
            row[f"reached, {precision}"] = (values != 0).double().mean().item()
            row[f"finite, {precision}"] = bool(values.isfinite().all())
            row[f"norm of the gradient, {precision}"] = values.norm().item()
    return list(rows.values())


def gradient(
    model: QualiCLIP, crops: Tensor, config: TrainConfig, precision: str = "fp32"
) -> dict[str, Tensor | None]:
    """The gradient of the recipe's loss for every parameter of the image encoder; None where it takes no part."""
    encoder = model.image_encoder
    set_training_mode(encoder, config.batch_norm)
    encoder.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        similarities = encoded(model, crops, config)
    objective(similarities, config)[0].backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


def moved(model: QualiCLIP, crops: Tensor, config: TrainConfig) -> list[dict[str, Any]]:
    """Which share of the weights differs after some optimizer steps, by their stored type and the learning rate."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for rate in RATES:
            settings = load_config("paper", [*SMALL, f"learning_rate={rate}"])
            with restored(model.image_encoder):
                rows.append(
                    {
                        "weights are kept in": str(dtype).removeprefix("torch."),
                        "learning rate": f"{rate:g}",
                        **moved_shares(model, crops, settings, dtype),
                    }
                )
    return rows


def moved_shares(model: QualiCLIP, crops: Tensor, config: TrainConfig, dtype: torch.dtype) -> dict[str, float]:
    """Train on one batch again and again, the weights that the optimizer keeps in ``dtype``."""
    encoder = model.image_encoder
    trained = dict(encoder.named_parameters())
    masters = {name: nn.Parameter(value.detach().to(dtype).clone()) for name, value in trained.items()}
    optimizer = build_optimizer(config, list(masters.values()))
    before = {name: value.detach().clone() for name, value in masters.items()}
    for _ in range(MOVES):
        for name, value in gradient(model, crops, config).items():
            masters[name].grad = None if value is None else value.to(dtype)
        optimizer.step()
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(masters[name])
    return shares(before, masters, config.learning_rate)


@torch.no_grad()
def shares(before: dict[str, Tensor], after: dict[str, Tensor], rate: float) -> dict[str, float]:
    """Of weights that were not 0: those that differ, and those that a single step of the learning rate can change."""
    old = torch.cat([value.flatten() for value in before.values()])
    new = torch.cat([after[name].flatten() for name in before])
    weights = old != 0
    step = torch.tensor(rate, dtype=old.dtype)
    relative = (new - old).double().norm() / old.double().norm()
    return {
        f"moved after {MOVES} steps": (new != old)[weights].double().mean().item(),
        "can be moved by one step": ((old - step != old) | (old + step != old))[weights].double().mean().item(),
        "distance, relative": relative.item(),
    }


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Give a module its parameters and buffers back after the block."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        yield
    finally:
        module.load_state_dict(state)


if __name__ == "__main__":
    main()
