"""What this machine has for the project: processor, GPU, threads, caches, weights and extras."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from qualiclip_plugin.utils.environment import processor_name
from qualiclip_plugin.utils.extras import (
    DISTRIBUTION,
    core_packages,
    extras,
    installed_bytes,
    is_installed,
)
from qualiclip_plugin.utils.process_settings import usable_cores

GPU_PACKAGES = ("nvidia-", "cuda-", "triton")
"""How the names of the packages begin that PyTorch's build for NVIDIA GPUs brings."""


def facts() -> list[tuple[str, str]]:
    """What is here, as (name, state), without any download."""
    import torch

    from qualiclip_plugin.weights.loading import load_cards

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return [
        (
            "version",
            f"{metadata.version(DISTRIBUTION)}, Python {platform.python_version()}, torch {torch.__version__}",
        ),
        ("processor", f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"),
        ("cores that this process may use", str(usable_cores())),
        (
            "threads of torch",
            f"{torch.get_num_threads()}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        ),
        ("GPU", ", ".join(gpus) or "none that torch can use"),
        ("weight cache", str(Path(torch.hub.get_dir()) / "pyiqa")),
        ("cache of the Hub", str(Path(hub).expanduser())),
        ("size of the core installation", _core_size()),
        *(
            (f"weights {card.name}", f"{'' if card.path.exists() else 'not here; would be '}{card.path}")
            for card in load_cards().values()
        ),
        *((f"extra {name}", _extra(needed)) for name, needed in extras().items()),
    ]


def _extra(needed: Iterable[Requirement]) -> str:
    lacking = [one.name for one in needed if not is_installed(one.name)]
    return f"lacks {', '.join(lacking)}" if lacking else "installed"


def _core_size() -> str:
    packages = core_packages()
    of_gpus = {name for name in packages if name.startswith(GPU_PACKAGES)}
    total, without = installed_bytes(packages), installed_bytes(packages - of_gpus)
    size = f"{total / 1e9:.2f} GB in {len(packages)} packages"
    return f"{size}; without CUDA's libraries and triton {without / 1e9:.2f} GB"
