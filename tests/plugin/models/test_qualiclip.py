"""The model against pyiqa's own class, and the properties that make it usable at any size and precision."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from qualiclip_plugin.integrations.hub import HubQualiCLIP
from qualiclip_plugin.integrations.pyiqa_arch import PyiqaQualiCLIP
from qualiclip_plugin.models.attention_pool import SingleQueryAttentionPool
from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder, build_tokenizer, interpolate_grid
from qualiclip_plugin.models.precision import fold_batch_norm, prepare_for_inference
from qualiclip_plugin.models.prompts import ATTRIBUTES, PROMPT_PAIRS, encode_prompts, flat_prompts, paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP, pair_scores, prompt_similarities
from qualiclip_plugin.utils.errors import ConfigError, ImageError, WeightsError
from qualiclip_plugin.weights.checkpoint import (
    CLIP_MEAN,
    CLIP_STD,
    build_model,
    build_text_side,
    read_weights,
    save_checkpoint,
)
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.reference import pyiqa_class
from tests.conftest import calibrate, needs_openvino
from tests.support.rounding import bound_of, score_bound

SIZES = [(224, 224), (384, 512), (768, 1024), (517, 333)]


def build_reference(home: Path, model_type: str) -> nn.Module:
    """pyiqa's own QualiCLIP class with the weights of ``home`` instead of a download."""
    pytest.importorskip("pyiqa.archs.qualiclip_arch", reason="pyiqa's own file needs setuptools < 81")
    cache = home / "hub" / "pyiqa"
    return pyiqa_class(cache / "QualiCLIP.pth", model_type, cache / "QualiCLIP+_koniq.pth")


@pytest.fixture(scope="module")
def reference(official_home: Path) -> nn.Module:
    """pyiqa's own class on the official weights."""
    return build_reference(official_home, "qualiclip")


@pytest.fixture(scope="module")
def pictures(photographs) -> dict[tuple[int, int], torch.Tensor]:
    """The astronaut at every tested size (H, W), float in [0, 1], (1, 3, H, W)."""
    photo = torch.from_numpy(photographs[0].copy()).permute(2, 0, 1)[None].float() / 255
    return {size: nn.functional.interpolate(photo, size, mode="bilinear", antialias=True) for size in SIZES}


@pytest.mark.usefixtures("use_official")
def test_scores_equal_pyiqa(reference, pictures, images):
    ours = load_model("official")
    with torch.no_grad():
        for batch in [images, *pictures.values()]:
            torch.testing.assert_close(ours(batch), reference(batch), rtol=0, atol=1e-5)
    assert ours(images).std() > 1e-2  # the random network tells pictures apart, so equality means something


@pytest.mark.usefixtures("use_official")
@pytest.mark.parametrize(
    ("runtime", "precision"), [("openvino", "fp32"), ("eager", "bf16"), ("openvino", "bf16"), ("eager", "fp16")]
)
def test_fast_scores_are_near_pyiqas(reference, pictures, images, runtime, precision):
    if runtime == "openvino":
        needs_openvino(precision)
    ours = load_model("official", runtime=runtime, precision=precision)
    # The random network was made to tell these crops apart and multiplies what rounding does to them.
    crops = [] if precision == "bf16" else [images]
    with torch.no_grad():
        for batch in [*crops, *pictures.values()]:
            torch.testing.assert_close(ours(batch), reference(batch), rtol=0, atol=max(1e-5, score_bound(precision)))


@pytest.mark.usefixtures("use_official")
def test_scores_with_positional_embedding_equal_pyiqa(reference, monkeypatch, images, tmp_path):
    ours = load_model("official", positional_embedding=True)
    without = reference(images[:2])
    monkeypatch.setattr(reference, "pos_embedding", True)
    with torch.no_grad():
        torch.testing.assert_close(ours(images[:2]), reference(images[:2]), rtol=0, atol=1e-5)
    assert not torch.allclose(ours(images[:2]), without, atol=1e-4)
    trainable = load_model("official", positional_embedding=True, inference=False)
    save_checkpoint(tmp_path / "saved.safetensors", trainable, {})
    again = load_model(str(tmp_path / "saved.safetensors"))
    torch.testing.assert_close(again(images[:2]), ours(images[:2]), rtol=0, atol=bound_of(ours))


@pytest.mark.usefixtures("official_plus")
def test_plus_scores_equal_pyiqa(use_official, pictures, images):
    reference = build_reference(use_official, "qualiclip+")
    ours = load_model("qualiclip+")
    with torch.no_grad():
        for batch in [images, *pictures.values()]:
            torch.testing.assert_close(ours(batch), reference(batch), rtol=0, atol=1e-5)
    assert ours(images).std() > 1e-3


def test_prompt_features_equal_pyiqa(use_official, reference):
    from pyiqa.archs.clip_imports import clip

    tokens = clip.tokenize(flat_prompts())
    config = backbone_config("RN50")
    tower = build_text_side(read_weights(use_official / "hub/pyiqa/QualiCLIP.pth"), config)
    assert torch.equal(build_tokenizer(config)(flat_prompts()), tokens)
    with torch.no_grad():
        expected = paired_features(reference.clip_model[0].encode_text(tokens))
    torch.testing.assert_close(encode_prompts(tower, build_tokenizer(config)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", ["huge", 0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_makes_no_scores_is_refused(tiny_checkpoint, scale):
    with pytest.raises(WeightsError, match="unknown scale"):
        load_model(tiny_checkpoint, scale=scale)


@pytest.mark.usefixtures("use_official")
def test_authors_scale_differs_from_pyiqas(images):
    authors, pyiqa = load_model("official", scale="authors"), load_model("official")
    with pytest.raises(WeightsError, match="with scale 'authors' it has no effect"):
        load_model("official", scale="authors", temperature=1.0)
    assert authors.logit_scale == 100
    assert pyiqa.logit_scale == pytest.approx(1 / 0.07 / 2, rel=1e-4)  # exp(initial logit_scale) / temperature
    assert not torch.allclose(authors(images), pyiqa(images), atol=1e-3)


def test_seven_pairs_name_seven_attributes(tiny_model, images):
    assert len(PROMPT_PAIRS) == len(ATTRIBUTES) == 7
    assert len(set(flat_prompts())) == 14
    score, attributes = tiny_model.eval()(images, attributes=True)
    assert list(attributes) == list(ATTRIBUTES)
    torch.testing.assert_close(torch.stack(list(attributes.values())).mean(0), score[:, 0])


def test_score_by_hand():
    similarities = torch.tensor([[[0.3, 0.1], [0.2, 0.2]]])
    expected = (1 / (1 + torch.tensor(-2.0).exp()) + 0.5) / 2
    assert pair_scores(similarities, 10.0).shape == (1, 2)
    torch.testing.assert_close(pair_scores(similarities, 10.0).mean(1), expected.view(1))


def test_single_query_pool_equals_full_attention():
    torch.manual_seed(0)
    full = open_clip.modified_resnet.AttentionPool2d(7, 64, num_heads=4, output_dim=32)
    nn.init.normal_(full.k_proj.bias)
    nn.init.normal_(full.v_proj.bias)
    feature_map = torch.randn(3, 64, 7, 7)
    with_positions = SingleQueryAttentionPool(full, use_positional_embedding=True)
    torch.testing.assert_close(with_positions(feature_map), full(feature_map), rtol=0, atol=2e-6)
    assert list(with_positions.state_dict()) == list(full.state_dict())


@pytest.mark.parametrize(
    "vision_config",
    [
        {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None},
        {"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "linear"},
    ],
    ids=["clip-resnet", "efficientnet"],
)
def test_folding_removes_every_batch_norm_and_no_score(vision_config, images):
    torch.manual_seed(0)
    encoder = build_image_encoder({"embed_dim": 16, "vision_cfg": vision_config})
    calibrate(encoder, images)
    with torch.no_grad():
        before = encoder(images)
        fold_batch_norm(encoder)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
        torch.testing.assert_close(encoder(images), before, rtol=1e-4, atol=1e-4 * before.abs().max().item())


@pytest.mark.parametrize(
    "vision_config",
    [
        {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None},
        {"layers": 2, "width": 64, "patch_size": 16, "image_size": 64},
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        {"timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear"},
    ],
    ids=["clip-resnet", "vit", "timm-vit", "convnext"],
)
def test_every_kind_of_tower_takes_any_size_and_gives_gradients(vision_config):
    config = {"embed_dim": 16, "vision_cfg": vision_config}
    model = QualiCLIP(
        build_image_encoder(config), paired_features(torch.randn(14, 16)), 10.0, CLIP_MEAN, CLIP_STD, ATTRIBUTES,
        backbone=config,
    ).eval()  # fmt: skip
    for height, width in [(32, 32), (64, 64), (70, 131), (224, 224)]:
        pixels = torch.rand(2, 3, height, width, requires_grad=True)
        score = model(pixels)
        assert score.shape == (2, 1)
        assert ((score >= 0) & (score <= 1)).all()
        score.sum().backward()
        assert torch.isfinite(pixels.grad).all()
        assert pixels.grad.abs().sum() > 0


def test_vit_at_its_own_size_uses_the_embedding_as_it_is():
    embedding = torch.randn(17, 8)
    torch.testing.assert_close(interpolate_grid(embedding, (4, 4), (4, 4)), embedding, rtol=0, atol=1e-5)
    assert torch.equal(interpolate_grid(embedding, (4, 4), (7, 5))[0], embedding[0])
    assert interpolate_grid(embedding, (4, 4), (7, 5)).shape == (36, 8)
    # As many cells in another shape are other places.
    assert not torch.allclose(interpolate_grid(embedding, (2, 8), (4, 4)), embedding, atol=1e-2)


def test_vit_keeps_open_clips_parameter_names():
    config = {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 64}}
    tower = build_image_encoder(config)
    state = tower.state_dict()
    assert "positional_embedding" in state
    twin = build_image_encoder(config)
    twin.load_state_dict(state)
    assert torch.equal(twin.transformer.proj, tower.transformer.proj)


def test_threads_encode_images_of_different_sizes_with_one_vit():
    config = {"embed_dim": 16, "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 64}}
    tower = build_image_encoder(config).eval().requires_grad_(False)
    sizes = [torch.rand(1, 3, 96, 64), torch.rand(1, 3, 64, 128)]
    alone = [tower(images) for images in sizes]
    together = threading.Barrier(len(sizes), timeout=30)

    def meet(*_: object) -> None:
        together.wait()

    hook = tower.transformer.conv1.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(len(sizes)) as pool:
        assert all(map(torch.equal, pool.map(tower, sizes), alone))
    hook.remove()
    assert torch.equal(tower(sizes[0]), alone[0]), "nothing is left of the other thread's image"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_fp32(tiny_checkpoint, images, precision):
    exact, fast = load_model(tiny_checkpoint), load_model(tiny_checkpoint, precision=precision)
    assert fast(images).dtype == torch.float32
    bound = bound_of(exact, precision)
    torch.testing.assert_close(fast(images), exact(images), rtol=0, atol=bound)


def test_autocast_lowers_a_network_that_trains_but_not_its_similarities(tiny_checkpoint, images):
    model = load_model(tiny_checkpoint, inference=False).eval()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model.encode_image(images)
        similarities = model.similarities(images)
    assert not torch.allclose(lowered, model.encode_image(images), rtol=0, atol=1e-4)
    assert similarities.dtype == torch.float32
    torch.testing.assert_close(similarities, prompt_similarities(lowered, model.text_features), rtol=0, atol=1e-6)
    torch.testing.assert_close(pair_scores(similarities, model.logit_scale).mean(1, True), exact, rtol=0, atol=5e-2)


def test_scores_do_not_depend_on_the_batch(tiny_checkpoint, images):
    model = load_model(tiny_checkpoint)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=bound_of(model))
    torch.testing.assert_close(model(images.flip(0)).flip(0), alone, rtol=0, atol=bound_of(model))


def test_inference_model_is_frozen_and_training_model_is_not(tiny_checkpoint):
    assert not any(p.requires_grad for p in load_model(tiny_checkpoint).parameters())
    trainable = load_model(tiny_checkpoint, inference=False)
    assert all(p.requires_grad for p in trainable.image_encoder.parameters())
    assert not trainable.text_features.requires_grad


def test_grey_images_are_scored_like_their_rgb_copy(tiny_checkpoint, images):
    model = prepare_for_inference(load_model(tiny_checkpoint))
    grey = images.mean(dim=1, keepdim=True)
    torch.testing.assert_close(model(grey), model(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("weights", ["tiny", "lite"])
def test_images_of_any_floating_type_are_scored_in_the_networks(tiny_checkpoint, images, weights):
    model = load_model(tiny_checkpoint if weights == "tiny" else weights)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        rounded = images.to(dtype)
        assert torch.equal(model(rounded), model(rounded.float()))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 31, 64), (1, 3, 1, 1)])
def test_unusable_images_are_named(tiny_model, shape):
    with pytest.raises(ImageError, match=r"got|too small"):
        tiny_model(torch.rand(shape))


def test_unknown_names_suggest_near_ones(tiny_checkpoint):
    with pytest.raises(ConfigError, match="RN50"):
        backbone_config("RN5O")
    with pytest.raises(ConfigError, match="fp32, fp16, bf16"):
        load_model(tiny_checkpoint, precision="fp64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: 255 * images, r"from 0 to 255: divide 0\.\.255 by 255"),
        (lambda images: 2 * images - 1, r"from -1 to 1: of -1\.\.1 take \(images \+ 1\) / 2"),
        (lambda images: (images - 0.5) / 0.25, "from -2 to 2: undo a normalisation"),
        (lambda images: images + 0.01, r"from 0\.01 to 1\.01: .* clamp\(0, 1\)"),
        (lambda images: images.masked_fill(images == images.max(), float("nan")), "some of these are nan"),
        (lambda images: images.masked_fill(images == images.max(), float("inf")), "from 0 to inf"),
    ],
)
@pytest.mark.parametrize("entry", ["load_model", "pyiqa", "torchmetrics", "hub"])
def test_values_outside_their_range_are_refused(entry, change, message, tiny_checkpoint, images):
    score = entries(tiny_checkpoint)[entry]
    images = (images[:1, :, :64, :64] - images[0].min()).clamp(0, 1)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ImageError, match=message):
        score(change(images))
    with pytest.raises(ImageError, match=message):
        score(change(images.double()))
    score(images + 9e-4)
    score(images - 9e-4)


@cache
def entries(weights: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Everything by which a tensor of images gets a score."""
    from qualiclip_plugin.integrations.torchmetrics import QualiCLIPMetric

    return {
        "load_model": load_model(weights),
        "pyiqa": PyiqaQualiCLIP(model_type="qualiclip", weights=weights),
        "torchmetrics": QualiCLIPMetric(weights).update,
        "hub": HubQualiCLIP.of(load_model(weights, inference=False)),
    }


def test_the_range_is_left_to_the_caller_of_a_loss_a_graph_and_training(tiny_checkpoint, images, monkeypatch):
    model = load_model(tiny_checkpoint)
    overshooting = (1.2 * images[:1]).requires_grad_()
    model(overshooting).sum().backward()
    assert overshooting.grad.abs().sum() > 0
    trained = load_model(tiny_checkpoint, inference=False).train()
    trained(overshooting.detach()).sum().backward()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(
        model(overshooting.detach()), model(overshooting).detach(), rtol=0, atol=bound_of(model)
    )


def test_every_model_is_handed_out_in_evaluation_mode(tiny_checkpoint):
    file = read_weights(tiny_checkpoint)
    handed = [build_model(file), load_model(tiny_checkpoint), load_model(tiny_checkpoint, inference=False)]
    handed += [HubQualiCLIP.of(build_model(file)), PyiqaQualiCLIP("qualiclip", weights=tiny_checkpoint)]
    handed += [PyiqaQualiCLIP("qualiclip", weights=tiny_checkpoint, train_image_encoder=True)]
    for model in handed:
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
@pytest.mark.parametrize("inference", [True, False])
def test_another_type_is_chosen_when_a_model_is_loaded(tiny_checkpoint, images, change, inference):
    model = load_model(tiny_checkpoint, inference=inference)
    before = model(images)
    for whole in (model, nn.Sequential(model)):
        with pytest.raises(ConfigError, match="choose a precision when the model is loaded"):
            change(whole)
    assert torch.equal(model(images), before)


def test_a_model_keeps_its_weights_when_it_is_moved(tiny_checkpoint, images):
    model = load_model(tiny_checkpoint)
    before = model(images)
    for whole in (model, nn.Sequential(model), PyiqaQualiCLIP("qualiclip", weights=tiny_checkpoint)):
        with pytest.raises(ConfigError, match=r"move it with to\(device\)"):
            whole.to_empty(device="cpu")
    assert torch.equal(model.to("cpu", torch.float32)(images), before)
    assert torch.equal(load_model(tiny_checkpoint).share_memory()(images), before)


@pytest.mark.parametrize(("weights", "runtime"), [("tiny", "eager"), ("tiny", "openvino"), ("lite", "eager")])
def test_torchs_default_type_changes_no_score(tiny_checkpoint, images, runtime, weights):
    if runtime == "openvino":
        needs_openvino()
    weights = tiny_checkpoint if weights == "tiny" else weights
    before = load_model(weights, runtime=runtime)(images[:1])
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(load_model(weights, runtime=runtime)(images[:1]), before)
    finally:
        torch.set_default_dtype(torch.float32)
