"""What a job's process changes in itself before its command starts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import datasets
import torch

from harness.data import ladders
from qualiclip_plugin.utils import download
from qualiclip_plugin.weights import loading as weights


def one_thread() -> None:
    """Sums depend on the number of threads."""
    torch.set_num_threads(1)


def write_often() -> None:
    """Store scores as often as they come, so that there is something to lose."""
    os.environ["HARNESS_WRITE_EVERY"] = "0.02"


def cache_of_datasets(folder: str) -> None:
    """Where ``datasets`` keeps what it has read; it reads the environment only once."""
    datasets.config.HF_DATASETS_CACHE = Path(folder)


def small_ladders() -> None:
    """One photograph, small, under two distortions: a second instead of half a minute."""
    ladders.PHOTOGRAPHS = {"coffee": ladders.PHOTOGRAPHS["coffee"]}  # type: ignore[misc]
    ladders.SIDE = 64
    kept = ("gaussian_blur", "jpeg")
    ladders.KINDS = {name: ladders.KINDS[name] for name in kept}  # type: ignore[misc]


def unwritable_output(full: bool) -> None:
    """Standard output on a full device, or a pipe whose reader has gone."""
    if full:
        writable = os.open("/dev/full", os.O_WRONLY)
    else:
        readable, writable = os.pipe()
        os.close(readable)
    os.dup2(writable, 1)


def impatient(seconds: float) -> None:
    """How long a download may stall, and how often it is tried again."""
    download.TIMEOUT_SECONDS = (5.0, seconds)
    download.ATTEMPTS = 2


def served_weights(address: str) -> None:
    """A weight name whose file is at an address."""
    card = dataclasses.replace(weights.get_card("lite"), name="served", file="served.safetensors", packaged=False)
    cards = {**weights.load_cards(), "served": dataclasses.replace(card, addresses=(address,), sha256=None)}
    weights.load_cards = lambda: cards  # type: ignore[assignment]
