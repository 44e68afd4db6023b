"""The 24 types on a batch of crops, against the same types image by image on one CPU core.

    python -m tests.benchmarks.bench_degradations                      # on a GPU where there is one
    pytest tests/benchmarks/bench_degradations.py --benchmark-enable   # through pytest-benchmark, on the CPU

Prints a Markdown table: milliseconds of both for a crop, their ratio, and how far both move the crops from the
pristine ones, which must be alike for the comparison to be one. The batch starts and ends on the device; the usual
way starts and ends with an array in memory. Types stand at the middle level of the table ``arniqa``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
import pytest
import torch
from tabulate import tabulate
from torch import Tensor

from qualiclip_plugin.distortions.registry import get_table
from qualiclip_plugin.utils.environment import processor_name, versions
from tests.benchmarks.bench_training import device_text
from tests.benchmarks.meters import seconds
from tests.benchmarks.usual_degradations import USUAL, degrade_usually
from tests.conftest import load_photographs

LEVEL = 3
ARNIQA = get_table("arniqa")


def crops_of(count: int, side: int) -> Tensor:
    """Crops of the photographs of scikit-image, (count, 3, side, side), float in [0, 1]."""
    photographs = [torch.from_numpy(photo.copy()).permute(2, 0, 1) / 255 for photo in load_photographs()]
    draws = torch.Generator().manual_seed(0)
    crops = []
    for index in range(count):
        photo = photographs[index % len(photographs)]
        top, left = (int(torch.randint(size - side + 1, (1,), generator=draws)) for size in photo.shape[1:])
        crops.append(photo[:, top : top + side, left : left + side])
    return torch.stack(crops)


def batched(name: str, crops: Tensor) -> Tensor:
    """All crops at once, where they are."""
    kind, seeds = ARNIQA[name], torch.arange(len(crops))
    return kind.apply(crops, torch.full((len(crops),), float(kind.strength(LEVEL))), seeds)


def one_by_one(name: str, images: list[np.ndarray]) -> list[np.ndarray]:
    """One image after another."""
    draws = np.random.default_rng(0)
    return [degrade_usually(image, name, ARNIQA[name].strength(LEVEL), draws) for image in images]


def errors(name: str, crops: Tensor, pristine: Tensor, images: list[np.ndarray]) -> tuple[float, float]:
    """How far both ways move the first crops: root mean squares against ``pristine``, batched and one by one."""
    usually = torch.from_numpy(np.stack(one_by_one(name, images))).permute(0, 3, 1, 2)
    moved = batched(name, crops)[: len(images)].cpu()
    return _rms(moved - pristine), _rms(usually - pristine)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def arrays(crops: Tensor) -> list[np.ndarray]:
    """The same crops as the usual way takes them: (H, W, 3), float64."""
    return [crop.permute(1, 2, 0).double().numpy() for crop in crops]


def measure(crops: Tensor, few: int, repeats: int) -> list[dict[str, object]]:
    """A row for every type; of the usual way only ``few`` crops are timed, which is as many as needed."""
    pristine = crops[:few].cpu()
    images = arrays(pristine)
    rows, total = [], [0.0, 0.0]
    for name in USUAL:
        moved = errors(name, crops, pristine, images)  # the first call of both, which warms them up
        usual = seconds(lambda name=name: one_by_one(name, images), "cpu") / few
        ours = [seconds(lambda name=name: batched(name, crops), crops.device.type) for _ in range(repeats)]
        mine = statistics.median(ours) / len(crops)
        total = [total[0] + usual, total[1] + mine]
        rows.append(_row(name, usual, mine, *moved))
    return [*rows, _row("**all types**", *total)]


def _row(name: str, usual: float, ours: float, *errors: float) -> dict[str, object]:
    row: dict[str, object] = {"type": name, "one by one, ms": 1000 * usual, "batched, ms": 1000 * ours}
    row["ratio"] = usual / ours
    return row | dict(zip(("error batched", "error one by one"), errors, strict=False))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--crops", type=int, default=160)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--few", type=int, default=8, help="crops of the usual way")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    crops = crops_of(options.crops, options.side).to(device)
    rows = measure(crops, options.few, options.repeats)
    packages = ", ".join(f"{library} {version}" for library, version in versions().items())
    print(
        f"{options.crops} crops of {options.side}x{options.side} on {device_text(device)}; one by one on one core of "
        f"{processor_name()}; load average {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}; {packages}\n"
    )
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))


@pytest.mark.parametrize("name", list(USUAL))
def test_both_ways_move_the_pixels_alike(name: str) -> None:
    crops = crops_of(4, 160)
    ours, usual = errors(name, crops, crops, arrays(crops))
    assert 0.5 < ours / usual < 2


@pytest.mark.parametrize("way", ["batched", "one by one"])
def test_all_types(benchmark, way: str) -> None:
    crops = crops_of(8, 160)
    images = arrays(crops)
    work = (lambda name: batched(name, crops)) if way == "batched" else (lambda name: one_by_one(name, images))
    benchmark.pedantic(lambda: [work(name) for name in USUAL], rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    main()
