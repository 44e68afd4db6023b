"""How pyiqa finds this package: what its entry points call, and the metric rows added on import.

pyiqa loads the entry points when it first looks up a type, so after ``pip install`` alone
``pyiqa.create_metric("qualiclip")`` builds this project's network. A new metric *name* is known only once
``qualiclip_plugin`` was imported, because pyiqa reads its table of names before it asks any entry point.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

ARCH_NAME = "QualiCLIP"
PYIQA_FILE = "pyiqa.archs.qualiclip_arch"

METRICS: dict[str, dict[str, Any]] = {
    "qualiclip-lite": {
        "metric_opts": {"type": ARCH_NAME, "model_type": "qualiclip", "weights": "lite"},
        "metric_mode": "NR",
        "score_range": "0, 1",
    },
}
"""Rows for pyiqa's ``DEFAULT_CONFIGS``."""


def register_arch() -> None:
    """Take over the type ``QualiCLIP`` in pyiqa's registry of architectures; may be called any number of times."""
    from pyiqa.utils.registry import ARCH_REGISTRY

    from qualiclip_plugin.integrations.pyiqa_arch import PyiqaQualiCLIP

    # pyiqa's own file registers the same name and refuses to do so second. Where it can be imported it goes first;
    # where it cannot (its dependency openai-clip needs the `pkg_resources` of setuptools < 81) it never registers.
    try:
        importlib.import_module(PYIQA_FILE)
    except ModuleNotFoundError as error:
        if error.name != "pkg_resources":
            raise
    ARCH_REGISTRY.register(PyiqaQualiCLIP, name=ARCH_NAME, override=True)


def register_metrics(default_model_configs: ModuleType) -> None:
    """Add this project's metric names to pyiqa's table, given as the module that holds it."""
    default_model_configs.DEFAULT_CONFIGS.update(METRICS)
