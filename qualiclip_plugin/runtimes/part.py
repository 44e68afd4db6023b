"""A replacement for a method of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from qualiclip_plugin.utils.errors import ConfigError

Part = Callable[[Tensor], Any]
"""A method of a tower that computes feature maps: (N, C, H, W) -> a map, or a list of them."""


class FastPart:
    """A method that a runtime computes; it stays in its process and knows no gradients."""

    runtime: str

    def check(self, images: Tensor) -> None:
        """Raise ``ConfigError`` where a gradient is asked for or the model is being exported."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and images.requires_grad):
            raise ConfigError(f"the runtime {self.runtime!r} gives no gradients: load with runtime='eager'")

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            f"the runtime {self.runtime!r} can be neither copied nor exported: load with runtime='eager'"
        )
