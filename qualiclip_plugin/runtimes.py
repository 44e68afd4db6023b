"""What computes the convolutions of a scoring network; pooling and the score stay in torch, in fp32.

============  =====================================================================================================
``eager``     torch, one operator after another. The reference; needs nothing further.
``compiled``  the same operators through ``torch.compile``, one graph for all sizes. Made for GPUs; on a CPU it needs
              a C++ compiler and gains little.
``openvino``  OpenVINO (extra ``openvino``). The fastest on CPUs, at any size, without a compiler.
============  =====================================================================================================

A runtime never changes the image: no resizing, no padding to a size it would like better.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from qualiclip_plugin.errors import ConfigError, first_line
from qualiclip_plugin.inference import PRECISIONS, prepare_for_inference, round_kernels
from qualiclip_plugin.towers import ConvTower, StagePoolTower
from qualiclip_plugin.tracing import EXAMPLE_SIZE, for_graphs

if TYPE_CHECKING:
    from qualiclip_plugin.model import QualiCLIP

RUNTIMES = ("eager", "compiled", "openvino")

Part = Callable[[Tensor], Any]
"""A method of a tower that computes feature maps: (N, C, H, W) -> a map, or a list of them."""

GRAPHS = 64
"""Most graphs of a method that ``compiled`` keeps in a process: every network has its own, and others where the
batch, height or width of a map is one."""


def check_runtime(runtime: str) -> str:
    """Return ``runtime`` if it is one of ``RUNTIMES``; raise ``ConfigError`` otherwise."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    return runtime


def prepare_for_scoring(model: QualiCLIP, runtime: str = "eager", device: str | torch.device = "cpu") -> QualiCLIP:
    """Make a model fast, in place, in its own precision; it can no longer be trained.

    Args:
        model: A plain network (``checkpoint.build_model``).
        runtime: One of ``RUNTIMES``.
        device: Where it will stay.

    Returns:
        ``model``.

    Raises:
        ConfigError: The runtime does not serve this network, device or precision, or something it needs is missing.
    """
    check_runtime(runtime)
    # OpenVINO takes weights in fp32 and rounds by itself, but not so that kernels keep their sums.
    prepare_for_inference(model, "fp32" if runtime == "openvino" else model.precision)
    if runtime == "openvino" and isinstance(model.image_encoder, ConvTower):
        round_kernels(model.image_encoder, PRECISIONS[model.precision])
    model.to(device)
    if runtime == "openvino" and isinstance(model.image_encoder, StagePoolTower):
        model.image_encoder.tile_bytes = 400  # OpenVINO holds the widest map of these networks twice
    if runtime != "eager":
        _use(model.image_encoder, runtime, model.precision)
    return model


def _use(tower: nn.Module, runtime: str, precision: str) -> None:
    """Have a tower's feature maps computed by a runtime, in place."""
    if not isinstance(tower, ConvTower):
        raise ConfigError(f"the runtime {runtime!r} serves convolutional towers, not {type(tower).__name__}")
    weight = next(tower.parameters())
    example = torch.rand(EXAMPLE_SIZE, device=weight.device).contiguous(memory_format=torch.channels_last)
    if runtime == "openvino":
        check_openvino(precision, weight.device)
    traceable = for_graphs(tower)
    for name in tower.parts:
        plain = getattr(traceable, name)
        part = OpenVINOPart(plain, example, precision) if runtime == "openvino" else CompiledPart(plain, example)
        with torch.no_grad():
            example = plain(example)
        setattr(tower, name, part)


class FastPart:
    """What stands in the place of a tower's method; it stays in its process and knows no gradients."""

    runtime: ClassVar[str]

    def check(self, images: Tensor) -> None:
        """Raise ``ConfigError`` where a gradient is asked for or the model is being exported."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and images.requires_grad):
            raise ConfigError(f"the runtime {self.runtime!r} gives no gradients: load with runtime='eager'")

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            f"the runtime {self.runtime!r} can be neither copied nor exported: load with runtime='eager'"
        )


class CompiledPart(FastPart):
    """A part of a tower through ``torch.compile``.

    Args:
        part: What to compile; it keeps its weights.
        example: Any valid input, (N, C, H, W).

    Raises:
        ConfigError: It cannot be compiled here.
    """

    runtime = "compiled"

    def __init__(self, part: Part, example: Tensor) -> None:
        # A graph for every size would compile at every new one; without `fullgraph` what fails would run uncompiled.
        self._compiled = torch.compile(part, dynamic=True, fullgraph=True)
        try:
            self(example)
        except Exception as error:
            reason = first_line(error)
            raise ConfigError(f"the runtime 'compiled' cannot compile this network here: {reason}") from error

    def __call__(self, images: Tensor) -> Any:
        """(N, C, H, W) -> what the part gives.

        Raises:
            ConfigError: See :meth:`FastPart.check`.
        """
        self.check(images)
        # Graphs are kept by mode; a copy made in inference mode has the same one whatever the caller's.
        with torch.inference_mode(), torch._dynamo.config.patch(cache_size_limit=GRAPHS):
            return self._compiled(images.clone())


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
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(graph)
    processor.input().tensor().set_layout(_layout("NHWC"))
    processor.input().model().set_layout(_layout("NCHW"))
    for index in range(len(graph.outputs)):
        processor.output(index).tensor().set_layout(_layout("NHWC"))
        processor.output(index).model().set_layout(_layout("NCHW"))
    return processor.build()


def _layout(text: str) -> Any:
    from openvino import Layout

    return Layout(text)
