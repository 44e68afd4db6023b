"""The logs of a run: CSV files, the progress display, and accelerate's trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.run_folder import CsvLog

if TYPE_CHECKING:
    from qualiclip_plugin.training.trainer import Trainer


class RunLogs:
    """The CSV logs, the progress display and the trackers of a run."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        config, folder = trainer.config, trainer.folder.path
        optional = [name for name in ("content", "metric", "attribute") if getattr(config, f"{name}_weight")]
        self.parts = ["consistency", "positive", "negative", *optional]
        columns = [
            "step",
            "loss",
            *self.parts,
            "accuracy",
            "learning_rate",
            "images_per_second",
            "seconds",
            "data_wait",
        ]
        self._steps = CsvLog(folder / "log.csv", columns, trainer.step)
        self._validation: CsvLog | None = None

    def step(self, figures: dict[str, float]) -> None:
        """Log one step."""
        trainer = self.trainer
        self._steps.add({"step": trainer.step, **figures})
        trainer.display.step(trainer.step, figures, self.parts)
        trainer.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=trainer.step)

    def validation(self, figures: dict[str, Any]) -> None:
        """Log one validation; rows of this step and later ones, from before a continuation, are replaced."""
        trainer = self.trainer
        flat = {name: value for name, value in figures.items() if name != "kinds"} | figures.get("kinds", {})
        if self._validation is None:
            path = trainer.folder.path / "validation.csv"
            self._validation = CsvLog(path, ["step", *flat], trainer.step - 1)
        self._validation.add({"step": trainer.step, **flat})
        trainer.display.validation(trainer.step, figures)
        trainer.accelerator.log({f"validation/{name}": value for name, value in flat.items()}, step=trainer.step)

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
