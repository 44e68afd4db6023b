"""The long runs that faults happen to: scoring, the harness, training. Each is a command, and what it should leave.

A result is compared as names with values: one for each scored image, figure or weight. Together with the list of the
files that an undisturbed run leaves, it tells what was lost, doubled or altered, and what was left lying about.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from tests.conftest import build_tiny_model, crops_of, load_photographs
from tests.faults.server import Job
from tests.support.harness_data import opinion_folder
from tests.support.local_server import LocalServer

Result = list[tuple[str, str]]
"""Names and values, in the order they stand in the files; a name that occurs twice is a double."""

TRAINING = {
    "steps": 5,
    "batch_size": 2,
    "crop_size": 64,
    "levels": 2,
    "distortions": ["gaussian_blur", "jpeg"],
    "learning_rate": 1e-3,
    "cpu": True,
    "workers": 1,
    "validation_photos": 0,
    "save_every": 1,
}


@dataclass(frozen=True)
class World:
    """What all works read, made once.

    Attributes:
        folder: Holds ``weights.safetensors``, ``images``, ``set`` (with opinions), ``photos``, ``train.yaml`` and
            ``datasets/packed.yaml``.
        served: Serves ``weights.safetensors``, ``packed.tgz`` and ``packed.csv``.
    """

    folder: Path
    served: LocalServer

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"


def make_world(folder: Path, served: LocalServer) -> World:
    """Write everything that the works read."""
    photographs = load_photographs()
    world = World(folder, served)
    save_checkpoint(world.weights, build_tiny_model(crops_of(photographs)), {})
    for name, number, (height, width) in (("images", 16, (80, 96)), ("photos", 4, (80, 96))):
        (folder / name).mkdir()
        for index in range(number):
            photo = photographs[index % len(photographs)]
            crop = photo[20 + 9 * index : 20 + 9 * index + height, 60 : 60 + width]
            Image.fromarray(np.ascontiguousarray(crop)).save(folder / name / f"{index:02d}.png")
    opinion_folder(folder / "set", 16)
    config = {**TRAINING, "weights": str(world.weights)}
    (folder / "train.yaml").write_text(json.dumps(config))
    _pack(world)
    for name in ("weights.safetensors", "packed.tgz", "packed.csv"):
        served.files[name] = (folder / name).read_bytes()
    return world


def _pack(world: World) -> None:
    """The folder ``set`` as an archive with a table of its own, and the specification of both."""
    with tarfile.open(world.folder / "packed.tgz", "w:gz") as archive:
        for path in sorted((world.folder / "set").glob("*.png")):
            archive.add(path, f"images/{path.name}")
    shutil.copy(world.folder / "set" / "metadata.csv", world.folder / "packed.csv")
    remote = {
        name: {"file": name, "address": f"{world.served.address}/{name}"} for name in ("packed.tgz", "packed.csv")
    }
    spec = {
        "name": "packed",
        "version": "1",
        "description": "a test",
        "licence": "none",
        "citation": "none",
        "columns": {"image": "file_name", "opinion": "mos"},
        "opinion": {"kind": "mos", "lower_better": False, "range": [0.0, 100.0]},
        "archive": {"images": remote["packed.tgz"], "labels": remote["packed.csv"], "path": "images/{file_name}"},
    }
    (world.folder / "datasets").mkdir()
    (world.folder / "datasets" / "packed.yaml").write_text(json.dumps(spec))


@dataclass(frozen=True)
class Work:
    """One kind of long run.

    Attributes:
        name: What the table calls it.
        arguments: World and output folder to the program and its arguments.
        result: Output folder to what came out.
        setups: Of the process, see ``tests.faults.setups``.
    """

    name: str
    arguments: Callable[[World, Path], Sequence[str]]
    result: Callable[[Path], Result]
    setups: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def job(self, world: World, output: Path, **limits: Any) -> Job:
        """The command for the state that the output folder is in."""
        output.mkdir(exist_ok=True)
        cache = output.parent / f"{output.name}-cache"
        places = {"QUALICLIP_CACHE": str(output / "cache"), "TORCH_HOME": str(output / "torch"), "no_proxy": "*"}
        environment = {**places, **limits.pop("environment", {})}
        setups = {"one_thread": (), "cache_of_datasets": (str(cache),), **self.setups, **limits.pop("setups", {})}
        if "served_weights" in setups:
            setups["served_weights"] = (f"{world.served.address}/weights.safetensors",)
        argv = tuple(self.arguments(world, output))
        return Job(argv, str(output.parent / f"{output.name}.log"), environment, setups, **limits)


def files_in(output: Path) -> Counter[str]:
    """All files below a folder by relative path, hashes in their names left out."""
    names = (path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return Counter(re.sub(r"part-[0-9a-f]{64}", "part", name) for name in names)


def clear(output: Path) -> None:
    """Remove an output folder and what stands beside it."""
    for path in (output, output.parent / f"{output.name}-cache"):
        shutil.rmtree(path, ignore_errors=True)


def _score(world: World, output: Path) -> Sequence[str]:
    options = ["--weights", str(world.weights), "--device", "cpu", "--output", str(output / "scores.csv")]
    return ["qualiclip", "score", str(world.folder / "images"), *options]


def _scores(output: Path) -> Result:
    path = output / "scores.csv"
    return [(Path(row["path"]).name, f"{row['score']} {row['error']}") for row in _rows(path)]


def _harness(world: World, output: Path) -> Sequence[str]:
    scorer = f"qualiclip@weights={world.weights}"
    options = ["--output", str(output / "results"), "--device", "cpu", "--quiet", "--retry-failed"]
    return ["iqa-harness", "run", "--scorer", scorer, "--dataset", f"set={world.folder / 'set'}", *options]


def _stored(output: Path) -> Result:
    """Every stored row, and every figure of the table."""
    return stored_rows(output) + _table(output)


def stored_rows(output: Path) -> Result:
    """Image and score of every row in every part, readable parts only."""
    found = []
    for path in sorted(output.rglob("part-*.parquet")):
        columns = (column.to_pylist() for column in pq.read_table(path, columns=["image_hash", "score", "error"]))
        found += [(image, f"{score} {error}") for image, score, error in zip(*columns, strict=True)]
    return found


def _table(output: Path) -> Result:
    rows = _rows(output / "results" / "leaderboard.csv")
    return [
        (f"{row['scorer'][:9]} {row['dataset']} {name}", value)
        for row in rows
        for name, value in row.items()
        if name not in ("scorer", "seconds")
    ]


def _ladders(world: World, output: Path) -> Sequence[str]:
    options = ["--output", str(output / "results"), "--device", "cpu", "--quiet", "--retry-failed"]
    return ["iqa-harness", "run", "--scorer", "tests.support.harness_data:brightness", *options]


def _train(world: World, output: Path) -> Sequence[str]:
    started = ["--resume"] if (output / "run" / "run.json").exists() else []
    options = ["--photos", str(world.folder / "photos"), "--output", str(output / "run"), *started]
    return ["qualiclip", "train", "--config", str(world.folder / "train.yaml"), *options]


def _trained(output: Path) -> Result:
    path = output / "run" / "model.safetensors"
    weights = load_file(path) if path.exists() else {}
    found = [(name, value.tobytes().hex()) for name, value in sorted(weights.items())]
    rows = _rows(output / "run" / "log.csv")
    return found + [(f"step {row['step']}", f"{row['loss']} {row['accuracy']}") for row in rows]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _packed(world: World, output: Path) -> Sequence[str]:
    return ["iqa-harness", "data", "check", "packed", "--include", str(world.folder / "datasets")]


def _fetch(world: World, output: Path) -> Sequence[str]:
    return ["qualiclip", "weights", "fetch", "served"]


def _contents(output: Path) -> Result:
    """Every file with its hash, but for those that say when it was checked."""
    files = sorted(path for path in output.rglob("*") if path.is_file() and path.suffix not in (".lock", ".verified"))
    return [(path.relative_to(output).as_posix(), sha256_file(path)) for path in files]


SCORING = Work("scoring", _score, _scores)
HARNESS = Work("harness", _harness, _stored, {"write_often": ()})
LADDERS = Work("generated data", _ladders, _stored, {"write_often": (), "small_ladders": ()})
TRAINING_RUN = Work("training", _train, _trained)
PACKED = Work("packed dataset", _packed, _contents, {"impatient": (0.5,)})
WEIGHTS = Work("weights", _fetch, _contents, {"impatient": (0.5,), "served_weights": ()})
WORKS = (SCORING, HARNESS, LADDERS, PACKED, WEIGHTS, TRAINING_RUN)
