"""How long a training step takes, and what of it is the network.

    python tests/benchmarks/bench_training.py                      # the laptop configuration on the CPU
    python tests/benchmarks/bench_training.py --config paper       # RN50, 160 crops; a GPU where there is one
    pytest tests/benchmarks/bench_training.py --benchmark-enable   # the laptop figures through pytest-benchmark

The first two print one Markdown table: the bare network (forward and backward on ready crops, losses, optimizer),
the degradations, the whole step as ``qualiclip train`` runs it, their ratios, images per second, peak memory.
Starting weights are random where the configuration's cannot be had: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder
from qualiclip_plugin.models.prompts import ATTRIBUTES, paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import load_config
from qualiclip_plugin.training.draws import draw_plan
from qualiclip_plugin.training.photos import SKIMAGE
from qualiclip_plugin.training.sampling import degrade
from qualiclip_plugin.training.trainer import Trainer, read_figures
from qualiclip_plugin.utils.environment import processor_name, versions
from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.weights.checkpoint import CLIP_MEAN, CLIP_STD, save_checkpoint


@dataclass
class Case:
    """A trainer with the parts of a step as functions of the step's number."""

    trainer: Trainer

    def __post_init__(self) -> None:
        self.batches = self.trainer.batches()
        self.batch = next(self.batches)
        self.waits: list[float] = []

    def degraded(self, step: int) -> Tensor:
        """The crops under the plan of a step, other kinds each time as in training."""
        config = self.trainer.config
        return degrade(self.batch.crops, draw_plan(config, step), include_pristine=config.pristine)

    def bare(self, step: int) -> None:
        """Network, losses and optimizer on ready crops."""
        read_figures(self.trainer.train_step(self.batch), step)

    def whole(self, step: int) -> None:
        """A step as the trainer runs it: network, then photographs and degradations of the next step."""
        values = self.trainer.train_step(self.batch)
        self.batch = next(self.batches)
        self.waits.append(self.batch.waited)
        read_figures(values, step)


def make_case(name: str, folder: str, settings: list[str]) -> Case:
    """A trainer of a configuration on the photographs of scikit-image."""
    settings = ["steps=100000", "validation_photos=0", "scored_data=null", *settings]
    try:
        return Case(Trainer(load_config(name, settings), SKIMAGE, f"{folder}/run"))
    except WeightsError:
        weights = random_weights(Path(folder) / "random.safetensors")
        config = load_config(name, [*settings, f"weights={weights}"])
        return Case(Trainer(config, SKIMAGE, f"{folder}/random"))


def random_weights(path: Path) -> Path:
    """CLIP's RN50 with random weights and prompt features."""
    config = backbone_config("RN50")
    features = paired_features(torch.randn(14, config["embed_dim"]))
    encoder = build_image_encoder(config)
    model = QualiCLIP(encoder, features, 50.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES, backbone=config)
    save_checkpoint(path, model, {"training_data": "none, random weights"})
    return path


@dataclass
class Seconds:
    """Time of the repetitions of one part of a step: on the clock, and used by this process's threads on the CPU."""

    clock: list[float]
    processor: list[float]


def seconds_of(parts: dict[str, Callable[[int], object]], repeats: int, cuda: bool) -> dict[str, Seconds]:
    """Time of each part, in turns so that a busy machine slows all of them alike."""
    seconds = {name: Seconds([], []) for name in parts}
    for step in range(repeats + 1):
        for name, part in parts.items():
            clock, processor = time.perf_counter(), time.process_time()
            part(step)
            if cuda:
                torch.cuda.synchronize()
            if step:  # the first round warms up
                seconds[name].clock.append(time.perf_counter() - clock)
                seconds[name].processor.append(time.process_time() - processor)
    return seconds


def peak_memory(device: torch.device) -> float:
    """GB: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def device_text(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def table(name: str, case: Case, seconds: dict[str, Seconds]) -> str:
    """The figures as Markdown: medians over the steps, but means of degradations, whose cost differs by kind."""
    config, device = case.trainer.config, case.trainer.accelerator.device
    images = case.batch.images.shape[:3].numel()
    bare, whole = (statistics.median(seconds[part].clock) for part in ("bare", "whole"))
    degraded, total = (statistics.mean(seconds[part].clock) for part in ("degraded", "whole"))
    degraded_cpu, total_cpu = (statistics.mean(seconds[part].processor) for part in ("degraded", "whole"))
    rows = {
        "crops a step": f"{images} of {config.crop_size}x{config.crop_size}",
        "bare network": f"{1000 * bare:.0f} ms",
        "degradations (mean)": f"{1000 * degraded:.0f} ms",
        "whole step": f"{1000 * whole:.0f} ms",
        "whole step / bare network": f"{whole / bare:.2f}",
        "degradations / whole step": f"{degraded / total:.2f} (in processor time {degraded_cpu / total_cpu:.2f})",
        "processor time of a step": f"{1000 * total_cpu:.0f} ms",
        "images per second": f"{images / whole:.0f}",
        "waiting for photographs (mean)": f"{1000 * statistics.mean(case.waits):.1f} ms",
        "peak memory": f"{peak_memory(device):.2f} GB",
    }
    head = (
        f"`{name}` on {device_text(device)}, load average {os.getloadavg()[0]:.1f}, "
        f"{config.mixed_precision}, {time.strftime('%Y-%m-%d')}, "
        f"{', '.join(f'{library} {version}' for library, version in versions().items())}\n"
    )
    return "\n".join([head, "| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows.items())])


def main() -> None:
    """Measure one configuration and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="laptop")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(arguments.config, folder, arguments.settings)
        parts = {"bare": case.bare, "degraded": case.degraded, "whole": case.whole}
        cuda = case.trainer.accelerator.device.type == "cuda"
        print(table(arguments.config, case, seconds_of(parts, arguments.repeats, cuda)))


@pytest.fixture(scope="module")
def laptop() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        yield make_case("laptop", folder, [])


@pytest.mark.parametrize("part", ["bare", "degraded", "whole"])
def test_laptop_step(benchmark, laptop: Case, part: str) -> None:
    steps = iter(range(1, 10_000))
    benchmark.pedantic(lambda: getattr(laptop, part)(next(steps)), rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    main()
