"""The scoring network as a graph that runs without this package: ``torch.export`` and ONNX.

Batch, height and width stay free; sides below ``MIN_EXPORT_SIZE`` are refused by the graph. Nothing is tiled inside a
graph, so its memory grows with the image.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.files import atomic_write

MIN_EXPORT_SIZE = 64
"""Smallest side in pixels: one step more than the stride, as graphs tell maps of one cell from larger ones."""
_EXAMPLE_SIZE = (2, 3, 70, 101)  # of no use but to trace; unequal, so that no two dimensions are taken for one


def _shapes() -> dict[str, dict[int, Any]]:
    sides = {2: Dim("height", min=MIN_EXPORT_SIZE), 3: Dim("width", min=MIN_EXPORT_SIZE)}
    return {"images": {0: Dim("batch"), **sides}}


class _SameConv(nn.Module):
    """timm's convolution at stride 2 with TensorFlow's padding, which depends on whether a side is odd.

    timm takes the larger of zero and a rounded size, from which a graph of free size cannot tell that its maps are
    large enough; the rest of a division by two says the same.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        if conv.stride != (2, 2) or any(side % 2 == 0 for side in conv.kernel_size) or conv.dilation != (1, 1):
            raise ConfigError(f"cannot export a 'same' convolution of {conv.kernel_size} at stride {conv.stride}")
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        conv, (rows, columns) = self.conv, self.conv.kernel_size
        height, width = images.shape[2:]
        before = [(kernel - 3) // 2 + side % 2 for kernel, side in ((columns, width), (rows, height))]
        after = [(kernel - 1) // 2 for kernel in (columns, rows)]
        padded = F.pad(images, [before[0], after[0], before[1], after[1]])
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def _for_graphs(model: nn.Module) -> nn.Module:
    """A copy of a model that computes the same and can be traced for all sizes."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, Conv2dSame):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, _SameConv(module))
    return copied


def export_program(model: nn.Module) -> ExportedProgram:
    """Export a model loaded for inference: images (N, 3, H, W), RGB in [0, 1] -> scores (N, 1).

    Raises:
        ConfigError: The model is in training mode, or has a layer that depends on the size in another way.
    """
    if model.training:
        raise ConfigError("only a model in evaluation mode can be exported (load_model(..., inference=True))")
    with torch.no_grad():
        return torch.export.export(_for_graphs(model), (torch.rand(_EXAMPLE_SIZE),), dynamic_shapes=_shapes())


def export_torch(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model loaded for inference as a file for ``torch.export.load``.

    Raises:
        ConfigError: See :func:`export_program`.
        OSError: The file cannot be written.
    """
    with atomic_write(path) as file:  # before the work: a place that cannot be written is an error at once
        torch.export.save(export_program(model), file)


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
    with atomic_write(path) as file:
        program = torch.onnx.export(
            export_program(model),
            input_names=["images"],
            output_names=["scores"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None  # noqa: S101 (narrows the type: no file was given)
        file.write(program.model_proto.SerializeToString())


EXPORTERS = {"onnx": export_onnx, "torch-export": export_torch}
"""Formats of a graph, and what writes one."""
