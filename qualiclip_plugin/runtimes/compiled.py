"""A part of a tower through ``torch.compile``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.errors import ConfigError, first_line
from qualiclip_plugin.runtimes.part import FastPart, Part

GRAPHS = 64
"""Most graphs of a method that are kept in a process: every network has its own, and others where the batch, height
or width of a map is one."""


class CompiledPart(FastPart):
    """A part of a tower as one graph for all sizes.

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
