"""The convolutions of a tower in OpenVINO, for any number and size of images on the CPU."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qualiclip_plugin.runtimes.part import FastPart, Part
from qualiclip_plugin.utils.errors import ConfigError


def check_openvino(precision: str, device: torch.device) -> None:
    """Raise ``ConfigError`` unless OpenVINO is installed and computes in ``precision`` on this CPU."""
    if device.type != "cpu":
        raise ConfigError(f"the runtime 'openvino' computes on the CPU, not on {device}")
    try:
        able = _openvino().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError as error:
        raise ConfigError('the runtime "openvino" needs: pip install "qualiclip-plugin[openvino]"') from error
    if precision.upper() not in able:
        raise ConfigError(f"OpenVINO computes no {precision} on this processor (it does {', '.join(able)})")


def _openvino() -> Any:
    """OpenVINO's ``Core``."""
    import openvino

    return _only(openvino.Core)


@cache
def _only(kind: type) -> Any:
    """The only instance of a class in this process.

    Each ``Core`` has a plugin of its own that replaces the thread's signal stack (OpenVINO 2026.4) and gives back the
    one it found when it goes. Of two that go in the order they came, the second gives back what the first has
    unmapped, and the next signal, such as the end of a child process, ends this one.
    """
    return kind()


class OpenVINOPart(FastPart):
    """A part of a tower as a graph of OpenVINO, for images of any number and size on the CPU.

    Args:
        part: What to convert; its weights are copied.
        example: Any valid input, (N, C, H, W).
        precision: What it computes in; inputs and outputs are fp32.
    """

    runtime = "openvino"

    def __init__(self, part: Part, example: Tensor, precision: str) -> None:
        import openvino

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the tracer thinks of shapes; the parity tests think otherwise
            graph = openvino.convert_model(_Module(part).eval(), example_input=example)
        graph.reshape([-1, example.shape[1], -1, -1])
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Kernels of sizes that were seen, 5000 by default: in a folder of all sizes they came to 1.4 GB.
            "CPU_RUNTIME_CACHE_CAPACITY": 200,
        }
        self._compiled = _openvino().compile_model(_channels_last(graph), "CPU", settings)
        self._several = len(graph.outputs) > 1
        self._lock = threading.Lock()  # a graph holds the memory of one call

    def __call__(self, images: Tensor) -> Any:
        """(N, C, H, W), fp32 -> what the part gives, fp32.

        Raises:
            ConfigError: The images are on another device; see :meth:`FastPart.check`.
        """
        if images.device.type != "cpu":
            raise ConfigError(f"the runtime 'openvino' computes on the CPU, not on {images.device}")
        self.check(images)
        pixels = images.detach().permute(0, 2, 3, 1).contiguous().numpy()
        with self._lock:
            maps = self._compiled(pixels)
            outputs = [torch.from_numpy(maps[index]).permute(0, 3, 1, 2) for index in range(len(maps))]
        return outputs if self._several else outputs[0]


class _Module(nn.Module):
    """A method as a module: what converters take."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor) -> Any:
        return self.part(images)


def _channels_last(graph: Any) -> Any:
    """The graph with inputs and outputs (N, H, W, C), as torch's channels-last tensors lie in memory."""
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(graph)
    processor.input().tensor().set_layout(Layout("NHWC"))
    processor.input().model().set_layout(Layout("NCHW"))
    for index in range(len(graph.outputs)):
        processor.output(index).tensor().set_layout(Layout("NHWC"))
        processor.output(index).model().set_layout(Layout("NCHW"))
    return processor.build()
