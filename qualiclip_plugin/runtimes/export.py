"""The scoring network as a graph that runs without this package: ``torch.export`` and ONNX.

Batch, height and width stay free; sides below ``MIN_EXPORT_SIZE`` are refused by the graph. Nothing is tiled inside a
graph, so its memory grows with the image.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from qualiclip_plugin.models.tracing import EXAMPLE_SIZE, for_graphs
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError

MIN_EXPORT_SIZE = 64
"""Smallest side in pixels: one step more than the stride, as graphs tell maps of one cell from larger ones."""

POOLS_SINCE = "2.13"
"""The first version of torch that does not fix in a graph whether an average pool leaves a row over."""

HALVED_FROM = 1024
"""Bytes of a weight in fp32 from which on it is worth a cast in an ONNX graph."""

ONNX_SINCE = "2.9"
"""The first version of torch whose ONNX graphs are tested; that of 2.6 is one that onnxruntime cannot load."""


def export_program(model: nn.Module) -> ExportedProgram:
    """Export a model loaded for inference: images (N, 3, H, W), RGB in [0, 1] -> scores (N, 1).

    Raises:
        ConfigError: The model is in training mode, or has a layer whose dependence on the size cannot be exported, or
            one that this version of torch cannot export.

    Examples:
        >>> import torch
        >>> from qualiclip_plugin.runtimes.export import export_program
        >>> from qualiclip_plugin.weights import load_model
        >>> program = export_program(load_model("lite"))
        >>> program.module()(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 1])
    """
    if model.training:
        raise ConfigError("only a model in evaluation mode can be exported (load_model(..., inference=True))")
    if any(isinstance(module, nn.AvgPool2d) for module in model.modules()):
        _check_torch(POOLS_SINCE, "a network with average pools, such as CLIP's ResNets,")
    sides = {2: Dim("height", min=MIN_EXPORT_SIZE), 3: Dim("width", min=MIN_EXPORT_SIZE)}
    shapes: dict[str, Any] = {"images": {0: Dim("batch"), **sides}}
    example = torch.rand(EXAMPLE_SIZE, dtype=torch.float32)
    with torch.no_grad():
        return torch.export.export(for_graphs(model), (example,), dynamic_shapes=shapes)


class _Refusing(nn.Module):
    """A model whose ONNX graph refuses small sides, as a program does by the bounds that ONNX does not take over.

    ONNX has no assertion; to ask for a pixel that is not there is an error.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        last_needed = images[:, :1, MIN_EXPORT_SIZE - 1, MIN_EXPORT_SIZE - 1]
        scores, named = self.model(images, attributes=True)
        return scores + 0 * last_needed, torch.stack(list(named.values()), dim=1)


def _check_torch(since: str, what: str) -> None:
    if torch.__version__ < since:
        raise ConfigError(f"{what} is exported by torch {since} or newer, not by {torch.__version__}")


def export_torch(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model loaded for inference as a file for ``torch.export.load``.

    Raises:
        ConfigError: See :func:`check_name` and :func:`export_program`.
        OSError: The file cannot be written.
    """
    check_name(path, "torch-export")
    with atomic_write(path) as file:  # before the work: a place that cannot be written is an error at once
        torch.export.save(export_program(model), file)


def export_onnx(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model loaded for inference as one ONNX file.

    Its input is ``images`` (N, 3, H, W), its outputs are ``scores`` (N, 1) and ``attributes`` (N, P), the scores of
    the prompt pairs in the order of ``model.attributes``.

    Raises:
        ConfigError: See :func:`check_name` and :func:`export_program`; or the packages of the extra ``onnx`` are
            missing.
        OSError: The file cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from qualiclip_plugin.runtimes.export import export_onnx
        >>> from qualiclip_plugin.weights import load_model
        >>> export_onnx(load_model("lite"), "lite.onnx")
        >>> Path("lite.onnx").stat().st_size < 8e6  # bytes
        True
    """
    check_name(path, "onnx")
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it and would say so in a longer way)
    except ImportError as error:
        raise ConfigError('ONNX export needs further packages: pip install "qualiclip-plugin[onnx]"') from error
    _check_torch(ONNX_SINCE, "an ONNX graph")
    with atomic_write(path) as file:
        program = torch.onnx.export(
            export_program(_Refusing(model)),
            input_names=["images"],
            output_names=["scores", "attributes"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None  # noqa: S101 (narrows the type: no file was given)
        file.write(_halved(program.model_proto).SerializeToString())


def _halved(graph: Any) -> Any:
    """Keep weights that fp16 holds exactly in fp16, with a cast to fp32: the same numbers in half the bytes."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.nbytes < HALVED_FROM:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


EXPORTERS = {"onnx": export_onnx, "torch-export": export_torch}
"""Formats of a graph, and what writes one."""

SUFFIXES = {".onnx": "onnx", ".pt2": "torch-export"}
"""Endings of a name that promise a format; under any other a graph may be written in either."""


def check_name(path: str | os.PathLike[str], form: str) -> None:
    """Refuse a name whose ending promises another format than ``form``: its reader would find a broken file.

    Raises:
        ConfigError: It does.
    """
    promised = SUFFIXES.get(os.path.splitext(path)[1].lower(), form)
    if promised != form:
        raise ConfigError(f"{os.fspath(path)}: such a file holds the format {promised}, not {form}")
