"""QualiCLIP+: the prompt learner alone, behind pyiqa's interface, and trained by pyiqa's own trainer."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from qualiclip_plugin.integrations.pyiqa_arch import PyiqaQualiCLIP
from qualiclip_plugin.models.backbones import backbone_config, build_text_tower, build_tokenizer
from qualiclip_plugin.models.prompt_learner import PromptLearner
from qualiclip_plugin.utils.errors import ConfigError, ImageError, WeightsError
from qualiclip_plugin.weights.checkpoint import WeightsFile, load_prompt_learner
from qualiclip_plugin.weights.loading import load_model
from tests.support.rounding import bound_of, score_bound


@pytest.fixture(scope="module")
def text():
    """A small text tower with CLIP's tokenizer, and the tokenizer."""
    torch.manual_seed(0)
    config = {**backbone_config("RN50"), "embed_dim": 16}
    config["text_cfg"] = {**config["text_cfg"], "width": 64, "heads": 2, "layers": 1}
    return build_text_tower(config), build_tokenizer(config)


@pytest.mark.parametrize(
    ("words", "sentence"),
    # Half of the tokens before, half after the class tokens; "photorealistic" has two.
    [("a photo", "a good. photo"), ("a big photorealistic", "a big good. photorealistic")],
)
def test_context_of_the_words_themselves_encodes_the_same_text(text, words, sentence):
    tower, tokenizer = text
    learner = PromptLearner(tower, tokenizer, prompts=["good."], ctx_init=words, prompt_specific_ctx=False)
    expected = tower(tokenizer([sentence]))
    torch.testing.assert_close(learner(tower), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("specific", "shape"), [(True, (14, 16, 64)), (False, (16, 64))])
def test_only_the_context_learns(text, specific, shape):
    tower, tokenizer = text
    learner = PromptLearner(tower, tokenizer, prompt_specific_ctx=specific)
    learner(tower).square().sum().backward()
    assert [name for name, _ in learner.named_parameters()] == ["ctx"]
    assert learner.ctx.shape == shape
    assert learner.ctx.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_a_context_of_no_or_too_many_tokens_is_refused(text):
    with pytest.raises(ConfigError, match="n_ctx"):
        PromptLearner(*text, n_ctx=0)
    prompts = ["good."]  # two tokens; start and end of the text are two more
    assert PromptLearner(*text, prompts=prompts, n_ctx=73).n_ctx == 73
    for words in (74, 80):
        with pytest.raises(ConfigError, match=f"a context of {words} words and the prompts exceed 77 tokens"):
            PromptLearner(*text, prompts=prompts, n_ctx=words)


def test_a_file_whose_context_leaves_no_room_is_named(tmp_path):
    file = WeightsFile(tmp_path / "long.pth", "prompt-learner", {"ctx": torch.zeros(14, 76, 64)}, {})
    config = {**backbone_config("RN50"), "embed_dim": 16}
    with pytest.raises(WeightsError, match=r"long.pth has learned prompts that do not fit: a context of 76 words"):
        load_prompt_learner(file, build_text_tower(config), config)


@pytest.mark.usefixtures("use_official", "official_plus")
def test_state_dictionary_and_scores_behind_pyiqas_interface(images):
    net = PyiqaQualiCLIP(model_type="qualiclip+").eval()
    assert set(net.state_dict()) == {
        "prompt_learner.ctx",
        "prompt_learner.token_prefix",
        "prompt_learner.token_suffix",
    }
    batch = images[:1, :, :64, :64]
    ours = load_model("qualiclip+")
    torch.testing.assert_close(net(batch), ours(batch), rtol=0, atol=bound_of(ours))
    before = net(batch)
    net.prompt_learner.ctx.data.normal_()  # the remembered prompt features must not outlive a change
    net.prompt_learner.ctx.data = net.prompt_learner.ctx.data.clone()
    assert not torch.allclose(net(batch), before)


@pytest.mark.usefixtures("use_official", "official_plus")
def test_remembered_prompt_features_serve_every_mode(images):
    batch = images[:1, :, :64, :64].clone().requires_grad_()
    expected = PyiqaQualiCLIP(model_type="qualiclip+").eval()(batch)
    net = PyiqaQualiCLIP(model_type="qualiclip+").eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(batch)
    torch.testing.assert_close(net(batch), expected, rtol=0, atol=score_bound("fp32"))
    net(batch).backward()
    assert batch.grad.abs().sum() > 0


@pytest.mark.usefixtures("use_official")
def test_the_range_is_left_to_training(images):
    net = PyiqaQualiCLIP("qualiclip+", pretrained=False)
    overshooting = images[:1, :, :64, :64].clone()
    overshooting[0, 0, 0, 0] = 1.01
    with pytest.raises(ImageError, match=r"to 1\.01"):
        net(overshooting)
    net.train()
    net(overshooting).sum().backward()
    assert net.prompt_learner.ctx.grad.abs().sum() > 0
    net.eval()
    with pytest.raises(ImageError, match=r"to 1\.01"):
        net(overshooting)


def test_trains_with_pyiqas_trainer_and_option_file(use_official, photographs, tmp_path):
    """One epoch on six pictures with the network and loss sections of pyiqa's own option file."""
    rows = []
    for index in range(6):
        photo = photographs[index % len(photographs)]
        Image.fromarray(photo[index * 8 : index * 8 + 96, :96]).save(tmp_path / f"{index}.png")
        rows.append((f"{index}.png", index + 1.0, 0.5))
    pd.DataFrame(rows, columns=["img_name", "mos", "std"]).to_csv(tmp_path / "meta.csv", index=False)
    data = {
        "name": "tiny", "type": "GeneralNRDataset", "dataroot_target": str(tmp_path),
        "meta_info_file": str(tmp_path / "meta.csv"), "mos_range": [1, 6], "lower_better": False,
        "mos_normalize": True, "img_range": 1, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2,
    }  # fmt: skip
    options = {
        "name": "plus", "model_type": "GeneralIQAModel", "num_gpu": 0, "manual_seed": 123,
        "datasets": {"train": {**data, "augment": {"hflip": True, "random_crop": 64}, "use_shuffle": True,
                               "dataset_enlarge_ratio": 1, "prefetch_mode": None}},
        "network": {"type": "QualiCLIP", "model_type": "qualiclip+", "backbone": "RN50", "n_ctx": 16, "ctx_init": "",
                    "prompt_specific_ctx": True, "pretrained": False, "pos_embedding": False},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {"optim": {"type": "Adam", "lr": 2e-3},
                  "scheduler": {"type": "CosineAnnealingLR", "T_max": 50, "eta_min": 0},
                  "total_iter": 3, "total_epoch": 1, "warmup_iter": -1,
                  "mos_loss_opt": {"type": "MSELoss", "loss_weight": 1.0},
                  "metric_loss_opt": {"type": "PLCCLoss", "loss_weight": 1.0}},
        "val": {"val_freq": 1e9, "save_img": False, "pbar": False, "key_metric": "srcc",
                "metrics": {"srcc": {"type": "calculate_srcc"}}},
        "logger": {"print_freq": 1, "save_latest_freq": 1e9, "save_checkpoint_freq": 1e9,
                   "use_tb_logger": False, "wandb": {"project": None}},
        "dist_params": {"backend": "nccl", "port": 29500},
    }  # fmt: skip
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    code = (
        "import sys\nfrom pyiqa.train import train_pipeline\n"
        f"sys.argv = ['train', '-opt', {str(tmp_path / 'options.yml')!r}]\ntrain_pipeline({str(tmp_path)!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    saved = sorted(tmp_path.rglob("net_*.pth"))
    assert saved, result.stdout[-2000:] + result.stderr[-3000:]
    learned = torch.load(saved[0], weights_only=True)["params"]
    start = PyiqaQualiCLIP(model_type="qualiclip+", pretrained=False)
    assert set(learned) == set(start.state_dict())
    start.load_state_dict(learned)
