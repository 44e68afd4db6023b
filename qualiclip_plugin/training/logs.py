"""The logs of a run: CSV files, the progress display, and accelerate's trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from qualiclip_plugin.distortions import get_table
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.objective import losses_of
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.run_folder import CsvLog

FIGURES = ("accuracy", "learning_rate", "images_per_second", "seconds", "data_wait")
"""What ``log.csv`` holds of a step besides the loss and its parts."""


def validation_figures(config: TrainConfig) -> list[str]:
    """Columns of ``validation.csv`` that a configuration has, besides the step."""
    held_out = config.validation_photos > 0
    ladders = ["ranking_accuracy", "d_test", "l_test"] if held_out else []
    people = ["srcc"] if config.scored_data else []
    return [*ladders, *people, *(get_table(config.table) if held_out else ())]


class RunLogs:
    """Where the figures of a run go.

    Args:
        first_step: Steps that are done already; what the files hold of later ones is replaced.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, first_step: int, display: Display, accelerator: Accelerator
    ) -> None:
        self.folder, self.display, self.accelerator = folder, display, accelerator
        self.parts, self.figures = [loss.name for loss in losses_of(config)], validation_figures(config)
        self._steps = CsvLog(folder / "log.csv", ["step", "loss", *self.parts, *FIGURES], first_step)
        self._validation: CsvLog | None = None

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Log a step; ``step`` counts those that are done."""
        self._steps.add({"step": step, **figures})
        self.display.step(step, figures, self.parts)
        self.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=step)

    def validation(self, step: int, figures: dict[str, Any]) -> None:
        """Log a validation; rows of this step and later ones, from before a continuation, are replaced."""
        flat = {name: value for name, value in figures.items() if name != "kinds"} | figures.get("kinds", {})
        if self._validation is None:
            # Not the columns of this row: a figure that is undefined now may be defined later.
            self._validation = CsvLog(self.folder / "validation.csv", ["step", *self.figures], step - 1)
        self._validation.add({"step": step, **flat})
        self.display.validation(step, figures)
        self.accelerator.log({f"validation/{name}": value for name, value in flat.items()}, step=step)

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        if self._validation is not None:
            self._validation.close()


def tracker_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration in the types that TensorBoard stores."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in config.to_dict().items()
    }
