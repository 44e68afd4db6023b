"""Training QualiCLIP: opinion-unaware, from pristine photographs (arXiv 2403.11176).

A step reads in time order: draw a plan, cut crop pairs, degrade them, encode them, compare them with the prompts,
take the losses, step. Everything random in step t is a function of the seed and t, every process of a distributed
run draws for the whole batch and works on its own places, and the losses are taken on the gathered similarities.
So a run that is stopped and continued equals one that was not, and many processes equal one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate.utils import gather_object
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from qualiclip_plugin.checkpoint import save_checkpoint
from qualiclip_plugin.errors import ConfigError, WeightsError, first_line
from qualiclip_plugin.images import to_float
from qualiclip_plugin.model import QualiCLIP, prompt_similarities
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.crop_loader import TrainingPhotos
from qualiclip_plugin.training.display import Display
from qualiclip_plugin.training.draws import check_plan, draw_plan, relevant_pairs
from qualiclip_plugin.training.full_reference import gmsd
from qualiclip_plugin.training.generators import (
    derive_seed,
    generator_states,
    preserved_generators,
    seed_generators,
    set_generator_states,
)
from qualiclip_plugin.training.head_fit import fit_head
from qualiclip_plugin.training.lite import LITE_START, starting_model
from qualiclip_plugin.training.objective import objective, ranking_accuracy
from qualiclip_plugin.training.photos import SkipList
from qualiclip_plugin.training.processes import CropEncoder, build_accelerator, device_name, places_of
from qualiclip_plugin.training.run_folder import RunFolder, RunState, read_csv, write_csv
from qualiclip_plugin.training.run_logs import RunLogs, tracker_config
from qualiclip_plugin.training.sampling import DegradationPlan, degrade
from qualiclip_plugin.training.stages import (
    choose_stages,
    movement,
    pull_to_start,
    recompute_in_backward,
    set_training_mode,
    train_only,
)
from qualiclip_plugin.training.stop_signal import StopSignal
from qualiclip_plugin.training.validation import read_scored_data, validate


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: Steps that are done.
        model: The result, or None where the run was stopped before its last step.
        stopped_by: Name of the signal that stopped it.
        validation: The last validation figures.
    """

    step: int
    model: Path | None
    stopped_by: str | None
    validation: dict[str, Any]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step (counted from 0), a pure function.

    ``constant`` and ``cosine`` rise linearly over ``warmup`` steps; ``onecycle`` rises from 1/25 of the rate over
    ``warmup`` (default 30 % of the) steps and falls to 1/250,000 of it, both along half a cosine
    (Smith and Topin, 2017, with PyTorch's constants).
    """
    if config.schedule == "onecycle":
        rise = max(round(0.3 * config.steps) if config.warmup is None else config.warmup, 1)
        if step < rise:
            return _cosine(config.learning_rate / 25, config.learning_rate, step / rise)
        share = (step - rise) / max(config.steps - 1 - rise, 1)
        return _cosine(config.learning_rate, config.learning_rate / 250_000, min(share, 1.0))
    warmup = config.warmup or 0
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        return _cosine(config.learning_rate, 0.0, (step - warmup) / max(config.steps - warmup, 1))
    return config.learning_rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Batch:
    """What one process encodes in a step.

    Attributes:
        step: The step's number, from 0.
        crops: Pristine crops in [0, 1], (b, 2, 3, S, S).
        images: Degraded crops, (b, 2, L, 3, S, S), L with the pristine level where the configuration has it.
        plan: The degradations of the whole batch, all processes.
        position: Where reading of the photographs continues after this step.
        waited: Seconds that the crops were waited for.
    """

    step: int
    crops: Tensor
    images: Tensor
    plan: DegradationPlan
    position: Any
    waited: float


class Trainer:
    """A run from its configuration to its result.

    Args:
        config: The configuration.
        photos: Photographs, see ``photos.open_photos``.
        output: Folder of the run.
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
        self.accelerator = build_accelerator(config, output, tensorboard)
        self.places = places_of(config, self.accelerator)
        if self.main:
            self.folder.lock()
        self.pool = ThreadPoolExecutor(config.workers, thread_name_prefix="photos")
        self.skipped = SkipList(read_skipped(self.folder.path) if resume else {})
        self.display = Display(enabled=self.main)
        check_plan(config)
        self.scored = read_scored_data(config.scored_data) if config.scored_data else None
        self.model = self._starting_model()
        self.photos = TrainingPhotos(config, photos, self.pool, self.skipped, self.display)
        self.write_skipped()
        if config.head_fit and not resume:
            crops = self.photos.fitting_crops(config.head_fit)
            with self.display.counting("fitting the head", config.head_fit) as notice:
                fit_head(self.model, crops, config, notice)
        # No process may find the files that the first one is about to write.
        self.accelerator.wait_for_everyone()
        self._own_folder()
        self._prepare()

    @property
    def main(self) -> bool:
        """Whether this process writes and talks."""
        return bool(self.accelerator.is_main_process)

    def _starting_model(self) -> QualiCLIP:
        from qualiclip_plugin.weights import load_model

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
        self.folder.check_space(4 * parameters * (copies * (self.config.keep + 1) + 2))
        if self.main and not self.resume:
            save_checkpoint(self.folder.path / "start.safetensors", self.model, {"weights": self.config.weights})
            self.folder.write_json("run.json", self._run_record())

    def _run_record(self) -> dict[str, Any]:
        from qualiclip_plugin.provenance import git_revision, versions

        return {
            "config": self.config.to_dict(),
            "photographs": self.photos.record,
            "trained_stages": self.stage_names,
            "processes": self.accelerator.num_processes,
            "device": device_name(self.accelerator.device),
            "date": time.strftime("%Y-%m-%d"),
            "git_revision": git_revision(),
            "versions": versions(),
        }

    def _prepare(self) -> None:
        """Move everything to its device and take up the checkpoint, where there is one."""
        config, device = self.config, self.accelerator.device
        seed_generators(derive_seed(config.seed, "process", self.accelerator.process_index) % 2**32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        if config.channels_last:
            self.model.image_encoder.to(memory_format=torch.channels_last)
        self.start = {
            name: value.detach().clone().to(device) for name, value in self.model.image_encoder.named_parameters()
        }
        loaded = self.folder.load() if self.resume else None
        if loaded:
            with fitting(self.folder.path):
                self.model.load_state_dict(loaded[1].weights)
        self.model.to(device)
        self.averaged = self._averaged(loaded[1].averaged if loaded else None)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        encoder: nn.Module = CropEncoder(self.model)
        if config.batch_norm == "train" and self.accelerator.num_processes > 1:
            encoder = convert_sync_batchnorm(encoder)
        if config.compile:
            encoder.compile()
        self.encoder, self.optimizer = self.accelerator.prepare(encoder, build_optimizer(config, trained))
        self.step, self.position = 0, (0, 0)
        if loaded:
            self.step, self.position = loaded[0], loaded[1].position
            with fitting(self.folder.path):
                self._restore(loaded[1].state)

    def _averaged(self, kept: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if not self.config.ema:
            return None
        source = kept or self.model.state_dict()
        return {name: value.detach().clone().to(self.accelerator.device) for name, value in source.items()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.process_index < len(state["generators"]):
            set_generator_states(state["generators"][self.accelerator.process_index])

    def batches(self) -> Iterator[Batch]:
        """Degraded crops of this process for every step from the current one on."""
        config, device = self.config, self.accelerator.device
        began = time.perf_counter()
        loader = self.photos.crops(self.places, self.step, self.position)
        for step, (cut, position) in enumerate(loader, self.step):
            waited = time.perf_counter() - began
            pinned = cut.pin_memory() if device.type == "cuda" else cut
            crops = to_float(pinned.to(device, non_blocking=True))
            plan = draw_plan(config, step)
            images = degrade(crops, plan.select(self.places), include_pristine=config.pristine)
            yield Batch(step, crops, images, plan, position, waited)
            began = time.perf_counter()

    def similarities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Encode this process's crops and compare them with the prompts.

        Returns:
            Similarities of the whole batch, (B, 2, L, P, 2), gradient in this process's part; GMSD (B, 2, L) or
            None where no loss asks for it.
        """
        shape, flat = batch.images.shape[:3], batch.images.flatten(0, 2)
        features = self.encoder(flat).float()
        similarities = prompt_similarities(features, self.model.text_features).unflatten(0, shape)
        distances = None
        if self.config.metric_weight:
            pristine = batch.crops[:, :, None].expand_as(batch.images).flatten(0, 2)
            distances = self.gather(gmsd(flat, pristine).unflatten(0, shape))
        return self.gather(similarities), distances

    def gather(self, part: Tensor) -> Tensor:
        """Join the parts of all processes along the first axis; gradient flows into this process's part."""
        if self.accelerator.num_processes == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.accelerator.num_processes)]
        torch.distributed.all_gather(parts, part.detach().contiguous())
        parts[self.accelerator.process_index] = part
        return torch.cat(parts)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimizer step; returns the loss, its parts and the ranking accuracy of the whole batch, 0-d each."""
        config = self.config
        set_training_mode(self.model.image_encoder, config.batch_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, batch.step)
        similarities, distances = self.similarities(batch)
        device = similarities.device
        relevant = relevant_pairs(batch.plan, config).to(device) if config.attribute_weight else None
        loss, parts = objective(similarities, config, distances=distances, relevant=relevant)
        self._backward(loss)
        self._update_average()
        return {"loss": loss, **parts, "accuracy": ranking_accuracy(similarities).mean()}

    def _backward(self, loss: Tensor) -> None:
        """Gradient and optimizer step."""
        config, encoder = self.config, self.model.image_encoder
        self.optimizer.zero_grad()
        # Each process's gradient is that of its own part of the batch, and the processes' gradients are averaged.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        self.accelerator.unscale_gradients()
        if config.start_pull:
            pull_to_start(encoder, self.start, config.start_pull)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(encoder.parameters(), config.clip_norm)
        self.optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.averaged is None:
            return
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - self.config.ema)
            else:
                self.averaged[name].copy_(value)

    @contextmanager
    def result_weights(self) -> Iterator[None]:
        """The averaged weights in the network, where there are any, for the length of the block."""
        if self.averaged is None:
            yield
            return
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)
        try:
            yield
        finally:
            self.model.load_state_dict(current)

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        states = gather_object([generator_states()])
        for reasons in gather_object([dict(self.skipped.reasons)]):
            self.skipped.reasons.update(reasons)
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "schedule": {"name": self.config.schedule, "step": self.step},
                "generators": states,
            }
            run_state = RunState(self.model.state_dict(), self.averaged, state, self.position)
            self.folder.save(self.step, run_state, self.config.keep)
            self.write_skipped()
        self.accelerator.wait_for_everyone()

    def write_skipped(self) -> None:
        """Write the list of photographs that were left out."""
        if self.main and len(self.skipped):
            rows = [{"photograph": name, "reason": reason} for name, reason in list(self.skipped.reasons.items())]
            write_csv(self.folder.path / "skipped.csv", ["photograph", "reason"], rows)

    def validate(self) -> dict[str, Any]:
        """Validation figures of the current weights, measured by the main process; empty in the others."""
        figures: dict[str, Any] = {}
        if self.main and (self.photos.held_out is not None or self.scored is not None):
            with self.result_weights(), preserved_generators():
                crops = self.photos.held_out.to(self.accelerator.device) if self.photos.held_out is not None else None
                figures = validate(self.model, crops, self.scored, self.config)
        self.accelerator.wait_for_everyone()
        return figures

    def movement(self) -> dict[str, dict[str, float]]:
        """How far the result is from the starting weights, by stage."""
        with self.result_weights():
            return movement(self.model.image_encoder, self.start)

    def run(self) -> TrainResult:
        """Train to the last step or to the first stop signal."""
        with StopSignal() as stop, self.display:
            if self.tensorboard:
                self.accelerator.init_trackers("tensorboard", config=tracker_config(self.config))
            try:
                return self._loop(stop)
            except OSError as error:
                whole = self.folder.steps()
                last = f"the checkpoint of step {whole[-1]} is whole" if whole else "no checkpoint was written yet"
                raise ConfigError(f"step {self.step}: {error}; {last}") from error
            finally:
                self.pool.shutdown(wait=True, cancel_futures=True)
                self.accelerator.end_training()
                if self.main:
                    self.folder.unlock()

    def _loop(self, stop: StopSignal) -> TrainResult:
        from qualiclip_plugin.training.report import finish

        with closing(RunLogs(self)) if self.main else nullcontext() as logs:
            stopped_by, last = self._steps(stop, logs)
            if stopped_by is not None:
                return TrainResult(self.step, None, stopped_by, last)
            last = self._validated(logs)
        return TrainResult(self.step, finish(self, last) if self.main else None, None, last)

    def _steps(self, stop: StopSignal, logs: RunLogs | None) -> tuple[str | None, dict[str, Any]]:
        """Train to the last step; returns the signal that stopped it before, and the last validation."""
        config = self.config
        self.display.start(self.step, config.steps, self.skipped)
        # The figures of the starting weights, to compare with.
        last = self._validated(logs) if self.step == 0 and config.validate_every else {}
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
                logs.step(figures | speed | {"data_wait": done.waited})
            stopped = self._any(stop.received)
            if stopped or self.step % config.save_every == 0 or self.step == config.steps:
                self.save()
            if stopped and self.step < config.steps:
                return stop.name or "SIGTERM", last
            if config.validate_every and self.step % config.validate_every == 0 and self.step < config.steps:
                last = self._validated(logs)
        return None, last

    def _validated(self, logs: RunLogs | None) -> dict[str, Any]:
        figures = self.validate()
        if logs and figures:
            logs.validation(figures)
        return figures

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)).item())


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Turn what torch raises for tensors and states of another run into an error that names the folder."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"the checkpoint in {folder} does not fit this run: {first_line(error)}") from error


def read_skipped(folder: Path) -> dict[str, str]:
    """Photographs, with the reason, that ``skipped.csv`` lists."""
    return {row["photograph"]: row["reason"] for row in read_csv(folder / "skipped.csv")}


def read_figures(values: dict[str, Tensor], step: int) -> dict[str, float]:
    """Bring a step's figures to the CPU, in one transfer because each would wait for the device.

    Raises:
        ConfigError: The loss is not finite.
    """
    figures = dict(zip(values, torch.stack([value.detach() for value in values.values()]).tolist(), strict=True))
    if not math.isfinite(figures["loss"]):
        raise ConfigError(f"the loss of step {step + 1} is {figures['loss']}: lower the learning rate")
    return figures


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def images_in_step(config: TrainConfig) -> int:
    """Crops that the network encodes in one step, over all processes."""
    return config.batch_size * 2 * (config.levels + config.pristine)


def train(
    config: TrainConfig, photos: str, output: str, *, resume: bool = False, tensorboard: bool = False
) -> TrainResult:
    """Train a model; see :class:`Trainer` for the arguments and errors."""
    return Trainer(config, photos, output, resume=resume, tensorboard=tensorboard).run()
