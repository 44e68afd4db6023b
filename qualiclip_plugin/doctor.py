"""What this machine offers the project: processor, GPU, threads, caches, weights and extras."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from qualiclip_plugin.utils.process_settings import usable_cores

DISTRIBUTION = "qualiclip-plugin"


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
        ("processor", f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"),
        ("cores that this process may use", str(usable_cores())),
        (
            "threads of torch",
            f"{torch.get_num_threads()}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        ),
        ("GPU", ", ".join(gpus) or "none that torch can use"),
        ("weight cache", str(Path(torch.hub.get_dir()) / "pyiqa")),
        ("cache of the Hub", str(Path(hub).expanduser())),
        *((f"weights {card.name}", _state(card.path)) for card in load_cards().values()),
        *((f"extra {name}", state) for name, state in extras().items()),
    ]


def extras() -> dict[str, str]:
    """The state of every optional dependency group: ``installed``, or what it lacks."""
    from packaging.requirements import Requirement

    found = {}
    needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    for name in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ():
        own = [
            one
            for one in needed
            if one.marker and "extra" in str(one.marker) and one.marker.evaluate({"extra": name})
        ]
        lacking = [str(one.name) for one in own if not _installed(one.name)]
        found[name] = f"lacks {', '.join(lacking)}" if lacking else "installed"
    return found


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _state(path: Path) -> str:
    return f"{path}" if path.exists() else f"not here; would be {path}"


def _processor() -> str:
    """Its name; where the system does not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
