"""The scoring network as a graph that runs without this package: ``torch.export`` and ONNX.

Batch, height and width stay free; sides below ``MIN_EXPORT_SIZE`` are refused by the graph. Nothing is tiled inside a
graph, so its memory grows with the image.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.files import atomic_write

MIN_EXPORT_SIZE = 64
"""Smallest side in pixels: one step more than the stride, as graphs tell maps of one cell from larger ones."""
_EXAMPLE_SIZE = (2, 3, 70, 101)  # of no use but to trace; unequal, so that no two dimensions are taken for one


def _shapes() -> dict[str, dict[int, Any]]:
    sides = {2: Dim("height", min=MIN_EXPORT_SIZE), 3: Dim("width", min=MIN_EXPORT_SIZE)}
    return {"images": {0: Dim("batch"), **sides}}


def export_program(model: nn.Module) -> ExportedProgram:
    """Export a model loaded for inference: images (N, 3, H, W), RGB in [0, 1] -> scores (N, 1).

    Raises:
        ConfigError: The model is in training mode.
    """
    if model.training:
        raise ConfigError("only a model in evaluation mode can be exported (load_model(..., inference=True))")
    with torch.no_grad():
        return torch.export.export(model, (torch.rand(_EXAMPLE_SIZE),), dynamic_shapes=_shapes())


def export_onnx(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model loaded for inference as one ONNX file, input ``images``, output ``scores``.

    Raises:
        ConfigError: The model is in training mode, or the packages of the extra ``onnx`` are missing.
        OSError: The file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it and would say so in a longer way)
    except ImportError as error:
        raise ConfigError('ONNX export needs further packages: pip install "qualiclip-plugin[onnx]"') from error
    program = torch.onnx.export(
        export_program(model),
        input_names=["images"],
        output_names=["scores"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None  # noqa: S101 (narrows the type: no file was given)
    with atomic_write(path) as file:
        file.write(program.model_proto.SerializeToString())
