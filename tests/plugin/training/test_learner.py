"""What a step does to the weights, and in which precision."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file
from torch import nn

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training import trainer
from qualiclip_plugin.training.config import config_from_mapping
from qualiclip_plugin.training.draws import draw_plan, relevant_pairs
from qualiclip_plugin.training.objective import check_attributes
from qualiclip_plugin.training.optimizer import learning_rate
from qualiclip_plugin.training.run_folder import read_csv
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from qualiclip_plugin.weights.loading import load_model
from tests.support.training_runs import assert_same, losses, run, stop_after, trainer_that, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_only_the_chosen_stages_move(run_settings, photo_folder: str, tmp_path: Path) -> None:
    run(run_settings | {"train_layers": 2, "batch_norm": "train"}, photo_folder, tmp_path / "run")
    before, after = load_file(tmp_path / "run" / "start.safetensors"), weights(tmp_path / "run")
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"layer4", "attnpool"}
    assert any("running_mean" in name for name in after if not torch.equal(after[name], before[name]))
    with pytest.raises(ConfigError, match="no stage layer9; there are stem, layer1"):
        run(run_settings | {"train_layers": ["layer9"]}, photo_folder, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"1\.\.6"):
        run(run_settings | {"train_layers": 7}, photo_folder, tmp_path / "other")


def test_batch_norm_keeps_its_statistics_by_default(finished_run: Path) -> None:
    before, after = load_file(finished_run / "start.safetensors"), weights(finished_run)
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name)
    assert torch.equal(after["text_features"], before["text_features"])


def test_a_pull_keeps_the_weights_near_their_start(run_settings, photo_folder: str, tmp_path: Path) -> None:
    def moved(name: str, **changes: Any) -> float:
        changes |= {"optimizer": "sgd", "learning_rate": 1e-2, "weight_decay": 0.0}
        run(run_settings | changes, photo_folder, tmp_path / name)
        before, after = load_file(tmp_path / name / "start.safetensors"), weights(tmp_path / name)
        return sum((after[k] - before[k]).square().sum().item() for k in after)

    free, pulled = moved("free"), moved("pulled", start_pull=20.0)
    assert 0 < pulled < 0.8 * free


def test_averaged_weights_are_the_result(run_settings, photo_folder: str, tmp_path: Path) -> None:
    run(run_settings | {"ema": 0.5, "save_every": 1, "keep": 99}, photo_folder, tmp_path / "run")
    name = "image_encoder.layer1.0.conv1.weight"
    expected = load_file(tmp_path / "run" / "start.safetensors")[name]
    for step in range(1, 7):
        now = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")[name]
        expected = 0.5 * expected + 0.5 * now
    torch.testing.assert_close(weights(tmp_path / "run")[name], expected)


def test_gradient_checkpointing_changes_nothing(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    run(run_settings | {"gradient_checkpointing": True}, photo_folder, tmp_path / "checkpointed")
    for name, value in weights(finished_run).items():
        torch.testing.assert_close(value, weights(tmp_path / "checkpointed")[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_run_agrees(run_settings, photo_folder: str, finished_run: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    run(run_settings | {"compile": True}, photo_folder, tmp_path / "compiled")
    for compiled, plain in zip(losses(tmp_path / "compiled"), losses(finished_run), strict=True):
        assert float(compiled[1]) == pytest.approx(float(plain[1]), abs=1e-2)


def test_half_precision_results(run_settings, photo_folder: str, tmp_path: Path) -> None:
    run(run_settings | {"save_precision": "fp16", "steps": 2}, photo_folder, tmp_path / "run")
    stored = weights(tmp_path / "run").values()
    assert all(value.dtype == (torch.float16 if value.dim() > 1 else torch.float32) for value in stored)
    # What half precision would round was rounded when it was saved.
    path = str(tmp_path / "run" / "model.safetensors")
    full, half = (load_model(path, precision=name) for name in ("fp32", "fp16"))
    for name, value in half.image_encoder.state_dict().items():
        assert torch.equal(value.float(), full.image_encoder.state_dict()[name]), name


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate allows one precision a process, unless it forgets the one it has."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator")
def test_autocast_keeps_fp32_weights(run_settings, photo_folder: str, tmp_path: Path) -> None:
    changes = {"mixed_precision": "bf16", "channels_last": True, "clip_norm": 1.0, "optimizer": "sgd", "steps": 3}
    run(run_settings | changes, photo_folder, tmp_path / "run")
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert all(value.dtype != torch.bfloat16 for value in trained.values())
    first = read_csv(tmp_path / "run" / "log.csv")[0]
    assert 0 < float(first["loss"]) < 10
    # Similarities are computed in fp32: a multiple of bf16's spacing would show in the consistency margin of .0025.
    assert float(first["consistency"]) * 2**12 % 1 != 0


def test_a_process_that_changes_its_precision_is_told_so(
    run_settings, photo_folder: str, tmp_path: Path, fresh_accelerator: None
) -> None:
    run(run_settings | {"steps": 1}, photo_folder, tmp_path / "fp32")
    with pytest.raises(ConfigError, match=r"this process cannot train in bf16 on cpu: .* already been initialized"):
        run(run_settings | {"mixed_precision": "bf16"}, photo_folder, tmp_path / "bf16")


def test_a_process_that_began_on_the_cpu_is_told_that_it_stays_there(
    run_settings, photo_folder: str, tmp_path: Path, fresh_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_settings | {"steps": 1}, photo_folder, tmp_path / "cpu")
    monkeypatch.setattr(PartialState, "default_device", torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"began on the CPU \(cpu: true\) and stays there"):
        run(run_settings | {"cpu": False}, photo_folder, tmp_path / "gpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run(run_settings | {"cpu": False, "steps": 1}, photo_folder, tmp_path / "launched").step == 1


@pytest.fixture
def scaled(fresh_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let runs have fp16's gradient scaler on the CPU, where torch has both and accelerate silently has neither."""

    def use(*, fp16: bool = True, scale: float = 2.0**16) -> None:
        def build(*_: object) -> Accelerator:
            accelerator = Accelerator(
                cpu=True, mixed_precision="fp16", kwargs_handlers=[AutocastKwargs(enabled=fp16)]
            )
            accelerator.native_amp = True
            # The scale grows after every second step, so that a checkpoint has something to keep.
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
            return accelerator

        monkeypatch.setattr(trainer, "build_accelerator", build)

    return use


def test_fp16_is_refused_on_a_cpu(run_settings, photo_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        run(run_settings | {"mixed_precision": "fp16"}, photo_folder, tmp_path / "run")
    # The process is not spoilt for another precision.
    run(run_settings | {"steps": 1}, photo_folder, tmp_path / "run")


def test_fp16_continues_bit_for_bit_with_its_scale(run_settings, photo_folder: str, tmp_path: Path, scaled) -> None:
    scaled(scale=2.0**10)
    settings = run_settings | {"mixed_precision": "fp16", "start_pull": 0.1, "clip_norm": 1.0}
    whole = trainer.Trainer(config_from_mapping(settings), photo_folder, str(tmp_path / "whole"))
    seen: set[torch.dtype] = set()

    def note(stage: nn.Module, _: object, features: torch.Tensor) -> None:
        if stage.training:
            seen.add(features.dtype)

    whole.model.image_encoder.layer4.register_forward_hook(note)
    whole.run()
    assert seen == {torch.float16}
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "whole").values())
    stop_after(settings, photo_folder, tmp_path / "part", 5)
    run(settings, photo_folder, tmp_path / "part", resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    last = [tmp_path / name / "checkpoints" / "step-00000006" / "state.pt" for name in ("whole", "part")]
    kept, continued = (torch.load(path, weights_only=True)["scaler"] for path in last)
    assert kept == continued
    assert kept["scale"] == 2.0**13


def test_gradients_are_unscaled_before_the_pull_and_the_clipping(
    run_settings, photo_folder: str, tmp_path: Path, scaled
) -> None:
    # A scale that is a power of two changes nothing else.
    settings = run_settings | {"start_pull": 20.0, "clip_norm": 0.05, "optimizer": "sgd", "learning_rate": 0.1}
    run(settings, photo_folder, tmp_path / "plain")
    AcceleratorState._reset_state(reset_partial_state=True)
    scaled(fp16=False)
    run(settings, photo_folder, tmp_path / "scaled")
    assert_same(weights(tmp_path / "plain"), weights(tmp_path / "scaled"))


def test_a_step_whose_gradient_overflows_is_left_out(run_settings, photo_folder: str, tmp_path: Path, scaled) -> None:
    scaled(fp16=False, scale=2.0**127)
    settings = run_settings | {"keep": 9, "save_every": 1, "start_pull": 0.1}
    run(settings, photo_folder, tmp_path / "run")
    start = load_file(tmp_path / "run" / "start.safetensors")
    name = "image_encoder.layer1.0.conv1.weight"
    first = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "weights.safetensors")[name]
    assert torch.equal(first, start[name])
    assert not torch.equal(weights(tmp_path / "run")[name], start[name])
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_prompt_pairs_are_not_named_for_weights_that_have_others(
    run_settings, tiny_model: QualiCLIP, photo_folder: str, tmp_path: Path
) -> None:
    other = copy.deepcopy(tiny_model)
    other.attributes = tiny_model.attributes[::-1]
    save_checkpoint(tmp_path / "other.safetensors", other, {})
    settings = run_settings | {"weights": str(tmp_path / "other.safetensors"), "steps": 1}
    for naming in ({"prompt_pairs": ["noise_free"]}, {"attribute_weight": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(naming))}: the prompt pairs of these weights are"):
            run(settings | naming, photo_folder, tmp_path / "run")
        with pytest.raises(ConfigError, match="the prompt pairs of these weights are"):
            check_attributes(other.attributes, config_from_mapping(naming))
    assert run(settings, photo_folder, tmp_path / "run").step == 1


def test_a_loss_that_is_not_finite_stops_the_run(run_settings, photo_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower the learning rate"):
        run(
            run_settings | {"learning_rate": 1e3, "steps": 50, "schedule": "constant"}, photo_folder, tmp_path / "run"
        )


def test_running_out_of_memory_says_what_needs_less(run_settings, photo_folder: str, tmp_path: Path) -> None:
    def exhaust() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    message = r"out of memory after step 4 \(12 crops a step\).*batch_size.*the checkpoint of step 4 is whole"
    with pytest.raises(ConfigError, match=message):
        trainer_that(exhaust, run_settings, photo_folder, tmp_path / "run", 4).run()

    def fail() -> None:
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        trainer_that(fail, run_settings, photo_folder, tmp_path / "other", 0).run()


def test_learning_rate_is_a_function_of_the_step(run_settings) -> None:
    def rates(**changes: Any) -> list[float]:
        config = config_from_mapping(run_settings | {"learning_rate": 1.0, "steps": 10} | changes)
        return [learning_rate(config, step) for step in range(10)]

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(schedule="cosine")[5] == pytest.approx(0.5)
    one_cycle = rates(schedule="onecycle")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.4)
    # PyTorch counts the peak as step pct_start * steps - 1.
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(expected) < 10 else None
    np.testing.assert_allclose(one_cycle, expected, rtol=1e-6)


def test_plans_are_drawn_for_the_step_and_name_their_prompt_pairs(run_settings) -> None:
    config = config_from_mapping(run_settings | {"batch_size": 40, "compositions": [1, 2]})
    assert draw_plan(config, 3) == draw_plan(config, 3)
    assert draw_plan(config, 3) != draw_plan(config, 4)
    plan = draw_plan(config, 0)
    relevant = relevant_pairs(plan, config)
    for kinds, row in zip(plan.kinds, relevant, strict=True):
        assert row[1] == row[2] == ("gaussian_blur" in kinds)
        assert row[4] == ("white_noise" in kinds)
        assert not row[[0, 3, 5, 6]].any()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_the_last_step_spoilt_is_not_saved(
    run_settings, photo_folder: str, tmp_path: Path, precision: str
) -> None:
    spoilt = run_settings | {"learning_rate": 1e3, "schedule": "constant", "steps": 1, "save_precision": precision}
    with pytest.raises(ConfigError, match="not finite after the last step: lower the learning rate"):
        run(spoilt, photo_folder, tmp_path / "run")
    assert len(read_csv(tmp_path / "run" / "log.csv")) == 1, "the loss of its step was finite"
    assert not (tmp_path / "run" / "model.safetensors").exists()
