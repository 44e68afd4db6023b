"""The model in other people's loops: graphs, metrics, the Hub, as a loss."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from qualiclip_plugin import cli
from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.export import export_onnx, export_program
from qualiclip_plugin.hub import HubQualiCLIP
from qualiclip_plugin.weights import load_model

SIZES = [(1, 64, 64), (3, 131, 70), (2, 224, 333)]


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    """A CLIP ResNet with an attention pool, and the packaged network, whose padding depends on the size."""
    return {"clip": load_model(tiny_checkpoint), "lite": load_model("lite")}


@pytest.fixture(scope="module")
def programs(models):
    return {name: export_program(model).module() for name, model in models.items()}


@pytest.fixture(scope="module")
def pictures(images) -> list[torch.Tensor]:
    """Photographs at the sizes of ``SIZES``."""
    resize = torch.nn.functional.interpolate
    return [resize(images[:count], (height, width), mode="bilinear") for count, height, width in SIZES]


@pytest.mark.parametrize("name", ["clip", "lite"])
def test_exported_program_scores_any_size(models, programs, pictures, name):
    for batch in pictures:
        torch.testing.assert_close(programs[name](batch), models[name](batch), rtol=0, atol=1e-6)


def test_a_graph_refuses_sides_below_its_smallest(programs):
    with pytest.raises(Exception, match="64"):
        programs["clip"](torch.rand(1, 3, 63, 64))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["qualiclip", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("name", ["lite", pytest.param("clip", marks=pytest.mark.slow)])
def test_onnx_scores_equal_at_any_size(models, pictures, tiny_checkpoint, tmp_path, monkeypatch, capsys, name):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    weights = tiny_checkpoint if name == "clip" else name
    assert command(monkeypatch, tmp_path / "model.onnx", "--weights", weights) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in pictures:
        (scores,) = session.run(["scores"], {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), models[name](batch), rtol=0, atol=1e-5)


def test_a_program_is_read_back_from_its_file(models, pictures, tiny_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    assert command(monkeypatch, path, "--weights", tiny_checkpoint, "--format", "torch-export") == 0
    program = torch.export.load(path).module()
    torch.testing.assert_close(program(pictures[1]), models["clip"](pictures[1]), rtol=0, atol=1e-6)


def test_export_names_what_is_missing_or_cannot_be_written(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert command(monkeypatch, tmp_path / "file" / "model.pt2", "--format", "torch-export") == 2
    assert "model.pt2: cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"qualiclip-plugin\[onnx\]"):
        export_onnx(models["clip"], tmp_path / "model.onnx")


def test_a_model_in_training_is_not_exported(tiny_checkpoint):
    with pytest.raises(ConfigError, match="evaluation mode"):
        export_program(load_model(tiny_checkpoint, inference=False).train())


def test_metric_is_the_mean_over_batches(models, images, tiny_checkpoint):
    pytest.importorskip("torchmetrics", reason="needs the extra torchmetrics")
    from qualiclip_plugin.torchmetric import QualiCLIPMetric

    metric = QualiCLIPMetric(tiny_checkpoint)
    metric.update(images[:1])
    metric.update(images[1:])
    torch.testing.assert_close(metric.compute(), models["clip"](images).mean(), rtol=0, atol=1e-6)
    metric.reset()
    metric.update(images[:1])
    torch.testing.assert_close(metric.compute(), models["clip"](images[:1]).mean(), rtol=0, atol=1e-6)


def test_hub_folder_gives_the_same_scores(images, tiny_checkpoint, tmp_path: Path):
    trained = HubQualiCLIP.of(load_model(tiny_checkpoint, inference=False)).eval()
    trained.save_pretrained(tmp_path / "repository")
    assert {path.name for path in (tmp_path / "repository").iterdir()} >= {"config.json", "README.md"}
    again = HubQualiCLIP.from_pretrained(tmp_path / "repository").eval()
    torch.testing.assert_close(again(images), trained(images), rtol=0, atol=0)
    assert again.attributes == trained.attributes
    assert math.isclose(again.logit_scale, trained.logit_scale)


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (131, 70), (500, 333)])
def test_gradients_as_a_loss_are_finite_at_all_sizes(tiny_checkpoint, size):
    pyiqa = pytest.importorskip("pyiqa")
    loss = pyiqa.create_metric("qualiclip", as_loss=True, device="cpu", weights=str(tiny_checkpoint))
    for value in (None, 0.0, 1.0):
        images = torch.rand(2, 3, *size) if value is None else torch.full((2, 3, *size), value)
        images.requires_grad_()
        loss(images).sum().backward()
        assert torch.isfinite(images.grad).all()
        assert images.grad.abs().sum() > 0
