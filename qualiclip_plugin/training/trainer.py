"""Training QualiCLIP: opinion-unaware, from pristine photographs (arXiv 2403.11176).

A step reads in time order: draw a plan, cut crop pairs, degrade them (``batches.py``), encode them, compare them with
the prompts, take the losses, step (``learner.py``). Everything random in step t is a function of the seed and t, and
every process of a distributed run draws for the whole batch and works on its own places. So a run that is stopped and
continued equals one that was not, and many processes equal one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from qualiclip_plugin.models.precision import make_exact_in_half
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.batches import Batch, degraded_batches, images_in_step
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.distributed import build_accelerator, places_of
from qualiclip_plugin.training.draws import check_plan
from qualiclip_plugin.training.layers import choose_stages, recompute_in_backward, train_only
from qualiclip_plugin.training.learner import Learner
from qualiclip_plugin.training.lite.head_adapt import adapt_head
from qualiclip_plugin.training.lite.head_fit import fit_head
from qualiclip_plugin.training.lite.start import LITE_START, starting_model
from qualiclip_plugin.training.logs import RunLogs, tracker_config
from qualiclip_plugin.training.model_card import build_card, describe_movement, run_record
from qualiclip_plugin.training.objective import check_attributes
from qualiclip_plugin.training.optimizer import learning_rate
from qualiclip_plugin.training.plot import plot_training
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.run_folder import RunFolder, RunState
from qualiclip_plugin.training.seeds import (
    derive_seed,
    generator_states,
    preserved_generators,
    set_generator_states,
)
from qualiclip_plugin.training.training_photos import TrainingPhotos
from qualiclip_plugin.training.validation import read_scored_data, validate
from qualiclip_plugin.utils.errors import ConfigError, WeightsError, first_line, out_of_memory
from qualiclip_plugin.utils.stop_signal import StopSignal
from qualiclip_plugin.weights.checkpoint import save_checkpoint


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        model: The result, or None if the run was stopped before its last step.
    """

    step: int
    model: Path | None
    stopped_by: str | None
    validation: dict[str, Any]


class Trainer:
    """A run from its configuration to its result.

    Args:
        photos: Photographs, see ``photos.open_photos``.
        resume: Continue the run that the folder holds.
        tensorboard: Write TensorBoard logs through accelerate.

    Raises:
        QualiCLIPError: Weights, photographs, configuration or folder cannot be used; nothing was trained.
    """

    def __init__(
        self, config: TrainConfig, photos: str, output: str, *, resume: bool = False, tensorboard: bool = False
    ) -> None:
        self.config, self.resume, self.tensorboard = config, resume, tensorboard
        self.folder = RunFolder(output)
        self.folder.check(resume=resume)
        try:
            self.accelerator = build_accelerator(config, output, tensorboard)
            self.places = places_of(config, self.accelerator)
        except BaseException:
            self.folder.release()
            raise
        self.pool = ThreadPoolExecutor(config.workers, thread_name_prefix="photos")
        self.skipped = self.folder.read_skipped() if resume else {}
        self.display = Display(self.skipped, enabled=self.main)
        self.step, self.position = 0, (0, 0)
        try:
            self._set_up(photos)
        except BaseException:
            self.close()
            raise

    def _set_up(self, photos: str) -> None:
        """All that can fail before the first step, what is quick to check first."""
        config = self.config
        if self.main:
            self.folder.lock()
        check_plan(config)
        self.scored = read_scored_data(config.scored_data, self.pool) if config.scored_data else None
        self.model = self._starting_model()
        self.photos = TrainingPhotos(config, photos, self.pool, self.skipped, self.display)
        if self.main:
            self.folder.write_skipped(self.skipped)
        if config.head and not self.resume:
            crops = self.photos.fitting_crops(config.head.batches)
            device, said = self.accelerator.device, ""
            with self.display.counting("fitting the head", config.head.batches) as notice:
                if config.head.share:
                    said = adapt_head(self.model, crops, self.photos.held_out, config, device, notice)
                else:
                    fit_head(self.model, crops, config, device, notice)
            if said:
                self.display.say(said)
        # No process may find the files that the first one is about to write.
        self.accelerator.wait_for_everyone()
        self._own_folder()
        set_seed(derive_seed(config.seed, "process", self.accelerator.process_index) % 2**32)
        self.learner = Learner(self.model, config, self.accelerator)
        if self.resume:
            self._restore()
            if self.main:
                self.folder.record_steps(self.config.steps)

    def close(self) -> None:
        """End the threads, the trackers and the hold on the folder; list what was skipped, also after an error."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.accelerator.end_training()
        if self.folder.held:
            try:
                self.folder.write_skipped(self.skipped)
            except OSError as error:  # must not hide what ended the run
                self.display.say(f"skipped.csv cannot be written: {error.strerror or error}")
            self.folder.release()

    @property
    def main(self) -> bool:
        """Whether this process writes and talks."""
        return bool(self.accelerator.is_main_process)

    def _starting_model(self) -> QualiCLIP:
        from qualiclip_plugin.weights.loading import load_model

        if self.resume:
            try:
                model = load_model(str(self.folder.path / "start.safetensors"), inference=False)
            except WeightsError as error:
                raise ConfigError(
                    f"{error}; without its starting weights the run cannot go on: delete {self.folder.path} and "
                    "start it again"
                ) from error
        elif self.config.weights == LITE_START:
            model = starting_model()
        else:
            model = load_model(self.config.weights, inference=False)
        check_attributes(model.attributes, self.config)
        self.stage_names = choose_stages(model.image_encoder, self.config.train_layers)
        train_only(model.image_encoder, self.stage_names)
        if self.config.gradient_checkpointing:
            recompute_in_backward(model.image_encoder)
        return model

    def _own_folder(self) -> None:
        """Compare with the run that the folder holds, or make it this run's."""
        if self.resume:
            self.folder.check_same_run(self.config.to_dict(), self.photos.record)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        copies = 4 if self.config.ema else 3
        checkpoints = 1 if self.resume else self.config.keep + 1
        self.folder.check_space(4 * parameters * (copies * checkpoints + 2))
        if self.main and not self.resume:
            record = run_record(self.config, self.photos.record, self.stage_names, self.accelerator)
            try:
                save_checkpoint(self.folder.path / "start.safetensors", self.model, {"weights": self.config.weights})
                self.folder.write_run(record)
            except OSError as error:
                raise ConfigError(f"cannot write to {self.folder.path}: {error.strerror or error}") from error

    def _restore(self) -> None:
        """Take up the last checkpoint, where there is one."""
        loaded = self.folder.load()
        if loaded is None:
            return
        self.step, checkpoint = loaded
        if self.step > self.config.steps:
            raise ConfigError(f"the run has done {self.step} steps: it cannot go on to steps={self.config.steps}")
        self.position = checkpoint.position
        with fitting(self.folder.path):
            self.learner.restore(checkpoint.weights, checkpoint.averaged, checkpoint.state)
            generators = checkpoint.state["generators"]
            if self.accelerator.process_index < len(generators):
                set_generator_states(generators[self.accelerator.process_index])
        if self.main:
            self.folder.prune(self.config.keep)

    def batches(self) -> Iterator[Batch]:
        """Degraded crops of this process for every step from the current one on."""
        loader = self.photos.crops(self.places, self.step, self.position)
        return degraded_batches(loader, self.config, self.places, self.step, self.accelerator.device)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimizer step, see ``Learner.train_step``."""
        return self.learner.train_step(batch)

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        states = gather_object([generator_states()])
        for reasons in gather_object([dict(self.skipped)]):
            self.skipped.update(reasons)
        if self.main:
            schedule = {"name": self.config.schedule, "step": self.step}
            state = self.learner.state() | {"schedule": schedule, "generators": states}
            weights, averaged = self.model.state_dict(), self.learner.averaged
            run_state = RunState(weights, averaged, state, self.position, self.config.to_dict())
            self.folder.save(self.step, run_state, self.config.keep)
            self.folder.write_skipped(self.skipped)
        self.accelerator.wait_for_everyone()

    def validate(self) -> dict[str, Any]:
        """Validation figures of the current weights, measured by the main process; empty in the others."""
        figures: dict[str, Any] = {}
        if self.main and (self.photos.held_out is not None or self.scored is not None):
            with self.learner.result_weights(), preserved_generators():
                crops = self.photos.held_out.to(self.accelerator.device) if self.photos.held_out is not None else None
                figures = validate(self.model, crops, self.scored, self.config)
        self.accelerator.wait_for_everyone()
        return figures

    def run(self) -> TrainResult:
        """Train to the last step or to the first stop signal."""
        with StopSignal() as stop, self.display:
            if self.tensorboard:
                self.accelerator.init_trackers("tensorboard", config=tracker_config(self.config))
            try:
                return self._run(stop)
            except OSError as error:
                raise ConfigError(f"step {self.step}: {error}; {self.folder.last_whole()}") from error
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise ConfigError(
                    f"out of memory after step {self.step} ({images_in_step(self.config)} crops a step): a smaller "
                    f"batch_size or gradient_checkpointing=true needs less; {self.folder.last_whole()}"
                ) from error
            finally:
                self.close()

    def _run(self, stop: StopSignal) -> TrainResult:
        logged = self.folder.path, self.config, self.step, self.display, self.accelerator
        with closing(RunLogs(*logged)) if self.main else nullcontext() as logs:
            stopped_by, last = self._steps(stop, logs)
            if stopped_by is not None:
                self.display.say(f"stopped by {stopped_by} after step {self.step}; continue with --resume")
                return TrainResult(self.step, None, stopped_by, last)
            last = self._validated(logs)
        return TrainResult(self.step, self._finish(last) if self.main else None, None, last)

    def _steps(self, stop: StopSignal, logs: RunLogs | None) -> tuple[str | None, dict[str, Any]]:
        """Train to the last step; returns the signal that stopped it before, and the last validation."""
        config = self.config
        self.display.start(self.step, config.steps)
        # Of the starting weights, to compare with; of a checkpoint, because it may have been stopped before.
        last = self._validated(logs) if self._validation_due() else {}
        batches = self.batches()
        batch = next(batches, None)
        while batch is not None:
            began = time.perf_counter()
            values = self.train_step(batch)
            done, batch = batch, next(batches, None)
            # Only now, with the next step's degradations queued, does anything wait for the device.
            figures = read_figures(values, done.step)
            self.step, self.position = done.step + 1, done.position
            seconds = time.perf_counter() - began
            if logs:
                figures["learning_rate"] = learning_rate(config, done.step)
                speed = {"images_per_second": images_in_step(config) / seconds, "seconds": seconds}
                logs.step(self.step, figures | speed | {"data_wait": done.waited})
            stopped = self._any(stop.received)
            if stopped or self.step % config.save_every == 0 or self.step == config.steps:
                self.save()
            if stopped and self.step < config.steps:
                return stop.name or "SIGTERM", last
            if self._validation_due():
                last = self._validated(logs)
        return None, last

    def _validation_due(self) -> bool:
        """Whether the current step is validated; the last one is, by whoever ends the run."""
        every = self.config.validate_every
        return every > 0 and self.step % every == 0 and self.step < self.config.steps

    def _validated(self, logs: RunLogs | None) -> dict[str, Any]:
        figures = self.validate()
        if logs and figures:
            logs.validation(self.step, figures)
        return figures

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item())

    def _finish(self, validation: dict[str, Any]) -> Path:
        """Write ``model.safetensors`` with its card and ``training.png``; returns the path of the weights."""
        path = self.folder.path / "model.safetensors"
        moved = self.learner.movement()
        card = build_card(self.folder, self.config, len(self.skipped), validation, moved)
        with self.learner.result_weights():
            result, dtype = self.model, torch.float32
            if self.config.save_precision == "fp16":
                result, dtype = deepcopy(self.model).eval(), torch.float16
                make_exact_in_half(result)
            check_result(result, self.config.crop_size)
            save_checkpoint(path, result, card, dtype=dtype)
        plot_training(self.folder, self.config, moved)
        self.display.say(f"weights moved: {describe_movement(moved)}")
        self.display.say(f"saved {path}")
        return path


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Turn what torch raises for tensors and states of another run into an error that names the folder."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"the checkpoint in {folder} does not fit this run: {first_line(error)}") from error


def read_figures(values: dict[str, Tensor], step: int) -> dict[str, float]:
    """Bring a step's figures to the CPU, in one transfer because each would wait for the device.

    Raises:
        ConfigError: The loss is not finite.
    """
    figures = dict(zip(values, torch.stack([value.detach() for value in values.values()]).tolist(), strict=True))
    if not math.isfinite(figures["loss"]):
        raise ConfigError(f"the loss of step {step + 1} is {figures['loss']}: lower the learning rate")
    return figures


@torch.no_grad()
def check_result(model: QualiCLIP, size: int) -> None:
    """Refuse a network that the last step has spoilt, which no loss of a next one tells.

    Args:
        model: The network; it is left in evaluation mode.
        size: Height and width in pixels of what it scores.

    Raises:
        ConfigError: Its scores of noise are not finite.
    """
    noise = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    if not model.eval()(noise.to(model.mean.device)).isfinite().all():
        raise ConfigError("the network gives scores that are not finite after the last step: lower the learning rate")


def train(
    config: TrainConfig, photos: str, output: str, *, resume: bool = False, tensorboard: bool = False
) -> TrainResult:
    """Train a model; see :class:`Trainer` for the arguments and errors."""
    return Trainer(config, photos, output, resume=resume, tensorboard=tensorboard).run()
