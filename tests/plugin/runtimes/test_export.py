"""The model in other people's loops: graphs, metrics, the Hub, as a loss."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch.torch_version import TorchVersion

from qualiclip_plugin.integrations.hub import FILE_NAME, HubQualiCLIP
from qualiclip_plugin.runtimes.export import EXPORTERS, POOLS_SINCE, export_onnx, export_program
from qualiclip_plugin.utils.errors import ConfigError, WeightsError
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.checkpoint import read_weights
from qualiclip_plugin.weights.loading import load_cards, load_model
from tests.support import fake_hub
from tests.support.commands import run_main
from tests.support.rounding import bound_of

SIZES = [(1, 64, 64), (3, 131, 70), (2, 224, 333)]
EXPORTABLE = ["lite"] if torch.__version__ < POOLS_SINCE else ["clip", "lite"]


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    """A CLIP ResNet with an attention pool, and the packaged network, whose padding depends on the size."""
    return {"clip": load_model(tiny_checkpoint), "lite": load_model("lite")}


@pytest.fixture(scope="module")
def programs(models):
    return {name: export_program(models[name]).module() for name in EXPORTABLE}


@pytest.fixture(scope="module")
def pictures(images) -> list[torch.Tensor]:
    """Photographs at the sizes of ``SIZES``."""
    resize = torch.nn.functional.interpolate
    return [resize(images[:count], (height, width), mode="bilinear") for count, height, width in SIZES]


@pytest.mark.parametrize("name", EXPORTABLE)
def test_exported_program_scores_any_size(models, programs, pictures, name):
    for batch in pictures:
        torch.testing.assert_close(programs[name](batch), models[name](batch), rtol=0, atol=bound_of(models[name]))


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_graph_refuses_sides_below_its_smallest(programs, name):
    with pytest.raises(Exception, match="64"):
        programs[name](torch.rand(1, 3, 63, 64))


def test_a_torch_that_cannot_export_a_network_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1"))
    with pytest.raises(ConfigError, match=r"torch 2\.13 or newer, not by 2\.8\.1"):
        export_program(models["clip"])
    with pytest.raises(ConfigError, match=r"ONNX graph is exported by torch 2\.9 or newer"):
        export_onnx(models["lite"], tmp_path / "model.onnx")


def export(monkeypatch, *arguments):
    return run_main(monkeypatch, "qualiclip", "export", *arguments)


@pytest.fixture
def onnx_file(request, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """The tiny CLIP ResNet as the command writes it, the packaged network as the function does."""
    if request.param == "lite":
        return request.getfixturevalue("lite_onnx")
    if torch.__version__ < POOLS_SINCE:
        pytest.skip(f"average pools in ONNX graphs need torch {POOLS_SINCE}")
    assert export(monkeypatch, tmp_path / "model.onnx", "--weights", tiny_checkpoint) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("name", "onnx_file"),
    [("lite", "lite"), pytest.param("clip", "clip", marks=pytest.mark.slow)],
    indirect=["onnx_file"],
)
def test_onnx_scores_equal_at_any_size(models, pictures, onnx_file, name):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    session = runtime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for batch in pictures:
        scores, attributes = map(torch.from_numpy, session.run(["scores", "attributes"], {"images": batch.numpy()}))
        expected, named = models[name](batch, attributes=True)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(attributes, torch.stack(list(named.values()), dim=1), rtol=0, atol=1e-5)
    for height, width in ((63, 64), (64, 63), (16, 16)):
        with pytest.raises(Exception, match="out of data bounds, idx=63"):
            session.run(["scores"], {"images": np.zeros((1, 3, height, width), np.float32)})


def test_an_onnx_graph_is_as_large_as_its_weights(lite_onnx):
    weights = Path(load_cards()["lite"].path)
    assert lite_onnx.stat().st_size < 1.05 * weights.stat().st_size


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_program_is_read_back_from_its_file(models, pictures, tiny_checkpoint, tmp_path, monkeypatch, name):
    path, weights = tmp_path / "model.pt2", {"clip": tiny_checkpoint, "lite": "lite"}[name]
    assert export(monkeypatch, path, "--weights", weights, "--format", "torch-export") == 0
    program = torch.export.load(path).module()
    torch.testing.assert_close(program(pictures[1]), models[name](pictures[1]), rtol=0, atol=bound_of(models[name]))


def test_export_names_what_is_missing_or_cannot_be_written(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert export(monkeypatch, tmp_path / "file" / "model.pt2", "--format", "torch-export") == 2
    assert "model.pt2: cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"qualiclip-plugin\[onnx\]"):
        export_onnx(models["clip"], tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "form", "other"), [("m.pt2", "onnx", "torch-export"), ("m.ONNX", "torch-export", "onnx")]
)
def test_a_name_that_promises_another_format_is_refused(models, tmp_path, monkeypatch, capsys, name, form, other):
    assert export(monkeypatch, tmp_path / name, "--format", form) == 2
    assert f"{name}: such a file holds the format {other}, not {form}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"such a file holds the format {other}"):
        EXPORTERS[form](models["lite"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_model_in_training_is_not_exported(tiny_checkpoint):
    with pytest.raises(ConfigError, match="evaluation mode"):
        export_program(load_model(tiny_checkpoint, inference=False).train())


def test_metric_is_the_mean_over_batches(models, images, tiny_checkpoint):
    pytest.importorskip("torchmetrics", reason="needs the extra torchmetrics")
    from qualiclip_plugin.integrations.torchmetrics import QualiCLIPMetric

    metric = QualiCLIPMetric(tiny_checkpoint)
    metric.update(images[:1])
    metric.update(images[1:])
    bound = bound_of(models["clip"])
    torch.testing.assert_close(metric.compute(), models["clip"](images).mean(), rtol=0, atol=bound)
    metric.reset()
    metric.update(images[:1])
    torch.testing.assert_close(
        metric.compute(), models["clip"](images[:1]).mean(), rtol=0, atol=bound_of(models["clip"])
    )


def test_a_missing_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "qualiclip_plugin.integrations.torchmetrics", raising=False)
    with pytest.raises(ImportError, match=r'pip install "qualiclip-plugin\[torchmetrics\]"'):
        import_module("qualiclip_plugin.integrations.torchmetrics")


@pytest.fixture
def shared(tiny_checkpoint):
    """A model to share, with BatchNorm unfolded."""
    return HubQualiCLIP.of(load_model(tiny_checkpoint, inference=False)).eval()


def test_hub_folder_gives_the_same_scores(images, shared, tmp_path: Path):
    shared.save_pretrained(tmp_path / "repository")
    assert {path.name for path in (tmp_path / "repository").iterdir()} >= {"config.json", "README.md"}
    again = HubQualiCLIP.from_pretrained(tmp_path / "repository")
    torch.testing.assert_close(again(images), shared(images), rtol=0, atol=0)
    assert not again.training
    assert again.attributes == shared.attributes
    assert math.isclose(again.logit_scale, shared.logit_scale)


def test_a_pushed_model_is_loaded_by_its_name(images, shared, tmp_path: Path, monkeypatch):
    with fake_hub.serving() as hub:
        fake_hub.use(hub, monkeypatch)
        shared.push_to_hub("me/quality", token="hf_none")  # noqa: S106 (nobody's)
        files = hub.files["models", "me/quality"]
        assert set(files) == {"README.md", "config.json", FILE_NAME}
        assert b"library_name: qualiclip-plugin" in files["README.md"]
        again = HubQualiCLIP.from_pretrained("me/quality", cache_dir=tmp_path)
        with pytest.raises(EntryNotFoundError):
            HubQualiCLIP.from_pretrained("me/nothing", cache_dir=tmp_path)
    torch.testing.assert_close(again(images), shared(images), rtol=0, atol=0)
    offline = HubQualiCLIP.from_pretrained("me/quality", cache_dir=tmp_path, local_files_only=True)
    torch.testing.assert_close(offline(images), shared(images), rtol=0, atol=0)


def test_a_model_to_share_can_be_copied_and_pickled(images, shared):
    for again in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):  # noqa: S301 (its own bytes)
        torch.testing.assert_close(again(images), shared(images), rtol=0, atol=0)
        assert again.card == shared.card


def test_a_model_for_inference_is_not_shared(tiny_checkpoint, tmp_path: Path):
    with pytest.raises(WeightsError, match="does not fit the architecture: it lacks"):
        HubQualiCLIP.of(load_model(tiny_checkpoint)).save_pretrained(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


def test_the_card_goes_with_the_weights(tiny_checkpoint, tmp_path: Path):
    card = {"licence": "CC0-1.0", "opinion_aware": False}
    HubQualiCLIP.of(load_model(tiny_checkpoint, inference=False), card).save_pretrained(tmp_path / "first")
    HubQualiCLIP.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert read_weights(tmp_path / "second" / FILE_NAME).header["card"] == {"name": "first", **card}
    for folder in ("first", "second"):
        readme = (tmp_path / folder / "README.md").read_text()
        assert "Licence of the weights: CC0-1.0\n- Human scores in their training: no\n" in readme
        assert '"licence": "CC0-1.0"' in readme


def test_the_readme_of_unknown_weights_says_so(shared, tmp_path: Path):
    shared.save_pretrained(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "Licence of the weights: not stated\n- Human scores in their training: not stated\n" in readme
    assert "More Information Needed" not in readme


@pytest.fixture(scope="module")
def loss(tiny_checkpoint):
    pyiqa = pytest.importorskip("pyiqa")
    return pyiqa.create_metric("qualiclip", as_loss=True, device="cpu", weights=str(tiny_checkpoint))


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (131, 70), (500, 333)])
def test_gradients_as_a_loss_are_finite_at_all_sizes(loss, size):
    for value in (None, 0.0, 1.0):
        images = torch.rand(2, 3, *size) if value is None else torch.full((2, 3, *size), value)
        images.requires_grad_()
        loss(images).sum().backward()
        assert torch.isfinite(images.grad).all()
        assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", ["clip", "lite"])
def test_autocast_around_a_loss_does_not_round_the_score(models, images, weights):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = models[weights](images)
    torch.testing.assert_close(score, models[weights](images), rtol=0, atol=bound_of(models[weights]))


def test_an_image_larger_than_a_tile_has_the_gradient_of_the_whole(loss, images, monkeypatch):
    image = torch.nn.functional.interpolate(images[:1], (301, 333), mode="bilinear").requires_grad_()
    loss(image).sum().backward()
    whole, image.grad = image.grad, None
    monkeypatch.setattr(loss.net.quality_model, "tile_pixels", 256 * 256)
    loss(image).sum().backward()
    torch.testing.assert_close(image.grad, whole, rtol=0, atol=0)


def test_the_example_raises_the_score_and_draws_it(tmp_path: Path):
    path = Path(__file__).parents[3] / "docs" / "examples" / "optimise_image.py"
    example = module_from_spec(spec_from_file_location("optimise_image", path))
    example.__spec__.loader.exec_module(example)
    image = example.dull_photograph()[..., 60:120, 100:180]
    results = example.optimise(image, 2)
    assert set(results) == {"edit", "free pixels"}
    for variables, after, curve in results.values():
        assert len(curve) == 3
        assert curve[0] < curve[-1]
        assert variables.abs().sum() > 0
        assert not torch.equal(after, image)
    example.draw(image, results, tmp_path / "drawn.png")
    assert read_image(tmp_path / "drawn.png").shape[2] > 500
