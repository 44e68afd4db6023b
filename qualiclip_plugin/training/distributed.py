"""Devices and processes of a run: accelerate's part, and what each process works on."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import Tensor, nn

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.utils.errors import ConfigError, first_line


class CropEncoder(nn.Module):
    """What accelerate wraps: images in [0, 1], (N, 3, H, W) -> unit-norm features (N, D)."""

    def __init__(self, model: QualiCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


def build_accelerator(config: TrainConfig, output: str, tensorboard: bool) -> Accelerator:
    """The accelerator of a configuration; ``tf32`` is set for the whole process.

    Raises:
        ConfigError: TensorBoard is asked for and not installed, or fp16 on a CPU; or another device or precision than
            this process has trained with before, or one that the device lacks.
    """
    if tensorboard:
        from accelerate.utils import is_tensorboard_available

        if not is_tensorboard_available():
            raise ConfigError(
                "--tensorboard needs the package tensorboard: pip install qualiclip-plugin[tensorboard]"
            )
    # A network may own parameters that its forward pass does not use, such as a positional embedding switched off;
    # they are the same ones in every step.
    unused = DistributedDataParallelKwargs(static_graph=True)
    if config.mixed_precision == "fp16" and PartialState(cpu=config.cpu).device.type == "cpu":
        # Accelerate would compute in fp32 without a word.
        raise ConfigError("mixed_precision: fp16 needs a GPU; a CPU trains in fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    try:
        accelerator = Accelerator(
            cpu=config.cpu,
            mixed_precision="no" if config.mixed_precision == "fp32" else config.mixed_precision,
            log_with="tensorboard" if tensorboard else None,
            project_dir=output,
            kwargs_handlers=[unused],
        )
    except ValueError as error:
        # Accelerate keeps its first device and precision for as long as a process lives.
        kind = "cpu" if config.cpu else "any device"
        reason = first_line(error)
        raise ConfigError(f"this process cannot train in {config.mixed_precision} on {kind}: {reason}") from error
    if not config.cpu and _kept_on_cpu(accelerator):
        # This one it keeps without a word.
        raise ConfigError(
            "this process began on the CPU (cpu: true) and stays there: train elsewhere in a new process"
        )
    return accelerator


def _kept_on_cpu(accelerator: Accelerator) -> bool:
    """Whether the CPU is used where a new process that does not ask for it would use something else."""
    launched = parse_flag_from_env("ACCELERATE_USE_CPU") or "ACCELERATE_TORCH_DEVICE" in os.environ
    return accelerator.device.type == "cpu" and not launched and PartialState().default_device.type != "cpu"


def places_of(config: TrainConfig, accelerator: Accelerator) -> range:
    """Places of the global batch that a process works on.

    Raises:
        ConfigError: The batch does not divide by the number of processes, or batch statistics cannot be shared.
    """
    processes = accelerator.num_processes
    if config.batch_size % processes:
        raise ConfigError(f"batch_size {config.batch_size} does not divide by {processes} processes")
    if processes > 1 and config.batch_norm == "train" and accelerator.device.type == "cpu":
        raise ConfigError("batch_norm: train needs GPUs where there are several processes (SyncBatchNorm)")
    share = config.batch_size // processes
    return range(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def device_name(device: torch.device) -> str:
    """What the device is called, such as the GPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
