"""Weights and training runs from strangers."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from qualiclip_plugin.training.run_folder import RECORD, STATE, WEIGHTS, RunFolder, RunState, read_log
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.errors import QualiCLIPError
from qualiclip_plugin.weights.checkpoint import build_model, read_weights, save_checkpoint
from tests.conftest import TINY_BACKBONE, build_tiny_model


def read_model(data: bytes, folder: Path) -> None:
    path = folder / "weights"
    path.write_bytes(data)
    build_model(read_weights(path))


@cache
def _tiny() -> Any:
    return build_tiny_model(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@cache
def weights_seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(folder / "plugin", _tiny(), {"name": "seed"})
        torch.save({"params": {"prompt_learner.ctx": torch.zeros(14, 16, 8)}}, folder / "learner")
        torch.save({"visual.a": torch.zeros(3)}, folder / "legacy", _use_new_zipfile_serialization=False)
        official = {"clip_model.visual.a": torch.zeros(3), "prompts_features": torch.zeros(14, 8)}
        torch.save(official, folder / "official")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_document(header: Any) -> bytes:
    """The tiny network's tensors under another header."""
    tensors = {f"image_encoder.{name}": value for name, value in _tiny().image_encoder.state_dict().items()}
    kept = {name: value.contiguous() for name, value in tensors.items() if "num_batches" not in name}
    return save({**kept, "text_features": _tiny().text_features.contiguous()}, {"qualiclip": json.dumps(header)})


def header() -> Any:
    model = _tiny()
    return {
        "format_version": 1,
        "backbone": TINY_BACKBONE,
        "logit_scale": 10.0,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "attributes": list(model.attributes),
        "card": {},
    }


def _as_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def read_run_folder(data: bytes, folder: Path) -> None:
    """A run folder that was made by somebody else: the bytes stand in for each of its files in turn."""
    run = RunFolder(folder)
    weights = {"weight": torch.zeros(2)}
    run.save(3, RunState(weights, None, {"optimizer": {}, "scaler": None, "generators": []}, 0, {"steps": 3}), keep=2)
    checkpoint = folder / "checkpoints" / "step-00000003"
    errors = []
    record = checkpoint / RECORD
    whole = record.read_bytes()
    for name in (STATE, WEIGHTS, RECORD, "run.json", "log.csv"):
        path = (folder if name in ("run.json", "log.csv") else checkpoint) / name
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(data)
        if name in (STATE, WEIGHTS):
            # Whoever makes the file makes its hash as well.
            values = {
                **json.loads(whole),
                "sha256": {file: sha256_file(checkpoint / file) for file in (STATE, WEIGHTS)},
            }
            values.pop("seal")
            record.write_text(json.dumps(values))
        try:
            {"run.json": run.read_run, "log.csv": lambda: read_log(folder / "log.csv")}.get(name, run.load)()
        except QualiCLIPError as error:
            errors.append(error)
        path.write_bytes(before)
        record.write_bytes(whole)
    if len(errors) >= 4:  # one line of anything is a log without rows
        raise errors[0]


@cache
def run_seeds() -> dict[str, bytes]:
    state = io.BytesIO()
    torch.save({"optimizer": {"state": {}}, "scaler": None, "generators": []}, state)
    record = {"step": 3, "position": [0, 4], "sha256": {STATE: "0", WEIGHTS: "0"}}
    return {
        "state": state.getvalue(),
        "weights": save({"weight": torch.zeros(2)}),
        "record": _as_bytes(record),
        "run": _as_bytes(
            {
                "config": {"steps": 3},
                "photographs": {"count": 2},
                "start": {"weights": "lite", "licence": "MIT", "opinion_aware": False},
                "trained_stages": ["head"],
                "processes": 1,
                "device": "cpu",
            }
        ),
        "log": b"step,loss\n1,0.5\n2,0.25\n",
    }
