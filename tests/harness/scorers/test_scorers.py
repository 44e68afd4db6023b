"""Scorers: found by name, directed, fingerprinted; one that cannot start says why."""

from __future__ import annotations

import csv
import itertools
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from harness.check.snapshot import Pictures, take_snapshot
from harness.data.network import without_network
from harness.data.spec import shipped_specs
from harness.scorers.downloads import weight_files
from harness.scorers.identity import code_hash, weights_hash
from harness.scorers.kinds import _same_in_batches
from harness.scorers.names import (
    DEFAULT_SCORERS,
    OTHER_INPUT,
    TABLE,
    ScorerError,
    facts,
    is_ours,
    known_scorers,
    lower_better,
    parse_name,
    split_label,
)
from harness.scorers.pyiqa_files import checked_files
from harness.scorers.start import create_scorer
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.errors import ConfigError, WeightsError
from tests.support.harness_data import brightness


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))


def test_names_and_options_are_told_apart() -> None:
    assert parse_name("niqe") == ("niqe", {})
    assert split_label("mine=cmd:./a.sh --x=1@lower_better=true") == ("mine", "cmd:./a.sh --x=1@lower_better=true")
    assert parse_name("mine=a.b:c@lower_better=true") == ("a.b:c", {"lower_better": True})
    for unlabelled in ("qualiclip@weights=a.pt", "cmd:a b=c", "a.b:c@x=1"):
        assert split_label(unlabelled) == (unlabelled, unlabelled)
    base, options = parse_name("clipiqa@model_type=clipiqa+,pos_embedding=true,n=4,x=0.5")
    assert base == "clipiqa"
    assert options == {"model_type": "clipiqa+", "pos_embedding": True, "n": 4, "x": 0.5}
    with pytest.raises(ScorerError, match="'true' is not option=value"):
        parse_name("niqe@true")


def test_default_scorers_are_known_by_name() -> None:
    assert set(DEFAULT_SCORERS) <= set(known_scorers())
    assert not {"fid", "inception_score", "clipscore"} & set(known_scorers())


def test_every_metric_of_the_installed_pyiqa_has_a_row() -> None:
    """One that a newer pyiqa brings works all the same; what is known of its training is then nothing."""
    import pyiqa

    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows]
    theirs = {name for name in pyiqa.list_models(metric_mode="NR") if not is_ours(name)}
    assert names == sorted(set(names))
    assert set(names) == theirs - OTHER_INPUT
    assert all(row["opinion_aware"] in ("yes", "no") and row["licence"] for row in rows)
    assert all((row["opinion_aware"] == "yes") == bool(row["trained_on"]) for row in rows)


def test_what_scorers_were_trained_on_goes_by_the_names_of_the_datasets() -> None:
    known = {name for spec in shipped_specs().values() for name in spec.seen_by}
    trained = {name for known_facts in known_scorers().values() for name in known_facts.trained_on}
    assert trained - known == {"?", "urankerset", "fgrestore"}


class Payload:
    """A pickle that writes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_of_pyiqa_run_no_code(tmp_path: Path) -> None:
    torch.save({"params": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ScorerError, match="could run code"):
        create_scorer(f"cnniqa@pretrained_model_path={tmp_path / 'evil.pth'}", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_torchscript_of_pyiqa_runs_on_the_users_word_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(torch.nn.Identity()), program)
    torch.save({"a": torch.zeros(1)}, tmp_path / "tensors.pt")
    load = torch.jit.load
    with checked_files(run_torchscript=False) as programs:
        with pytest.raises(ScorerError, match=r"program\.pt is a TorchScript archive.*run_torchscript=true"):
            torch.jit.load(str(program))
        with pytest.raises(WeightsError, match="TorchScript"):
            torch.load(program)
        # This is how CLIP's loader finds out what a file is; it then loads the tensors.
        with (tmp_path / "tensors.pt").open("rb") as file:
            with pytest.raises(RuntimeError, match="no TorchScript archive"):
                torch.jit.load(file)
            assert torch.load(file)["a"] == 0
    assert not programs
    with checked_files(run_torchscript=True) as programs:
        assert torch.jit.load(str(program))(torch.ones(1)) == 1
    assert programs == [sha256_file(program)]
    assert torch.jit.load is load


@pytest.mark.parametrize("name", ["psnr", "lpips"])
def test_a_metric_that_needs_a_reference_says_so(name: str) -> None:
    with pytest.raises(ScorerError, match=rf"{name} compares an image with its reference"):
        create_scorer(name)


def test_a_function_with_one_number_for_a_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_number_a_batch.py").write_text(
        "def plain(images):\n    return images.mean()\n\n\ndef listed(images):\n    return [images.mean()]\n"
    )
    monkeypatch.chdir(tmp_path)
    for function in ("plain", "listed"):
        with pytest.raises(ScorerError, match="for 2 images; one number per image is needed"):
            create_scorer(f"one_number_a_batch:{function}@lower_better=true", device="cpu")


def test_a_command_that_prints_no_list_is_refused(images: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "score.sh").write_text("echo 0.5")
    scorer = create_scorer(f"cmd:sh {tmp_path / 'score.sh'}@lower_better=true", device="cpu")
    with pytest.raises(ScorerError, match="did not print a JSON list"):
        scorer.score(images[:1])


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(ScorerError, match=r"no scorer named 'piqee'; did you mean piqe"):
        create_scorer("piqee")


def test_a_device_that_is_not_there_is_no_reason_of_a_scorer() -> None:
    for name in ("niqe", "qualiclip-lite", "tests.support.harness_data:brightness"):
        with pytest.raises(ConfigError, match="device 'tpu' cannot be used"):
            create_scorer(name, device="tpu")


def test_piqe_is_pyiqas_with_its_direction(images: torch.Tensor) -> None:
    import pyiqa

    scorer = create_scorer("piqe", device="cpu")
    assert scorer.lower_better
    expected = pyiqa.create_metric("piqe", device="cpu")(images[:2])
    assert np.allclose(scorer.score(images[:2]).numpy(), expected.numpy())


def test_qualiclip_weights_are_an_option_and_change_the_fingerprint(
    tiny_checkpoint: Path, images: torch.Tensor
) -> None:
    tiny = create_scorer(f"qualiclip@weights={tiny_checkpoint}", device="cpu")
    steeper = create_scorer(f"qualiclip@weights={tiny_checkpoint},scale=5.0", device="cpu")
    assert not tiny.lower_better
    assert tiny.identity != steeper.identity
    scores = tiny.score(images)
    assert scores.numel() == len(images)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert not scores.requires_grad
    again = create_scorer(f"qualiclip@weights={tiny_checkpoint}", device="cpu")
    assert again.identity == tiny.identity
    assert str(tiny_checkpoint.parent) not in str(tiny.identity)


def test_threads_that_start_scorers_leave_standard_output_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    second, numbers, before = threading.Event(), itertools.count(), sys.stdout

    def start(*_: object) -> str:
        if next(numbers) == 0:
            second.wait(0.2)  # the other thread begins, if it may
        else:
            second.set()
            time.sleep(0.05)  # the other thread ends
        return "started"

    monkeypatch.setattr("harness.scorers.start.start_callable", start)
    with ThreadPoolExecutor(2) as pool:
        started = list(
            pool.map(lambda _: create_scorer(f"{brightness.__module__}:brightness", device="cpu"), range(2))
        )
    assert started == ["started"] * 2
    assert sys.stdout is before


def test_missing_weights_are_a_reason_and_not_a_crash(offline: None) -> None:
    with pytest.raises(ScorerError, match="'official' are not here"):
        create_scorer("qualiclip", device="cpu")


def test_an_unknown_option_is_a_reason() -> None:
    with pytest.raises(ScorerError, match="nonsense"):
        create_scorer("niqe@nonsense_model=1,pretrained_model_path=/nonsense", device="cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qualiclip-lite@temperature=5", "temperature cannot be chosen for it"),
        ("cmd:true@lower_better=true,crop=2,size=3", "a command takes no option crop, size"),
    ],
)
def test_an_option_without_effect_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ScorerError, match=reason):
        create_scorer(name, device="cpu")


def test_functions_are_scorers_with_a_declared_direction(images: torch.Tensor) -> None:
    scorer = create_scorer("tests.support.harness_data:brightness", device="cpu")
    assert not scorer.lower_better
    assert torch.equal(scorer.score(images), images.mean(dim=(1, 2, 3)))
    assert create_scorer("tests.support.harness_data:brightness@lower_better=true", device="cpu").lower_better
    with pytest.raises(
        ScorerError, match=r"declare its direction: tests\.support\.harness_data:picture@lower_better"
    ):
        create_scorer("tests.support.harness_data:picture")
    with pytest.raises(ScorerError, match="has no function 'nothing'"):
        create_scorer("tests.support.harness_data:nothing")
    with pytest.raises(ScorerError, match="it needs the package no_such_module, which is not installed"):
        create_scorer("no_such_module:nothing")


def test_a_function_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: torch.Tensor
) -> None:
    (tmp_path / "helper_of_mine.py").write_text("OFFSET = 1\n")
    (tmp_path / "scorer_of_mine.py").write_text(
        "from helper_of_mine import OFFSET\n\ndef mean(images):\n    return images.mean((1, 2, 3)) + OFFSET\n"
    )
    monkeypatch.chdir(tmp_path)
    # The installed command has its own folder there, and not the current one.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = list(sys.path)
    scorer = create_scorer("scorer_of_mine:mean@lower_better=false", device="cpu")
    assert torch.equal(scorer.score(images), images.mean((1, 2, 3)) + 1)
    assert sys.path == before


def test_metrics_that_mix_a_batch_are_found(images: torch.Tensor) -> None:
    def mixing(batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(1, 2, 3)) - batch.mean()

    def failing(batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(1, 2, 3)).reshape(1)

    assert _same_in_batches(lambda batch: batch.mean(dim=(1, 2, 3)), "cpu")
    assert not _same_in_batches(mixing, "cpu")
    assert not _same_in_batches(failing, "cpu")


def test_listed_directions_are_those_of_the_started_scorers() -> None:
    for name in ("piqe", "entropy", "qualiclip-lite"):
        assert create_scorer(name, device="cpu").lower_better == lower_better(name)


def test_weights_hash_sees_every_tensor_and_array() -> None:
    network = torch.nn.Linear(2, 2)
    first = weights_hash(network)
    assert weights_hash(network) == first
    with torch.no_grad():
        network.bias[0] = math.nextafter(float(network.bias[0]), 9)
        network.bias[0] += 1e-3
    second = weights_hash(network)
    network.pristine = np.ones(3)
    third = weights_hash(network)
    network.loose = torch.ones(2, dtype=torch.float64)
    assert len({first, second, third, weights_hash(network)}) == 4


def test_code_hash_ignores_comments_and_layout_but_no_code(tmp_path: Path) -> None:
    texts = {
        "plain.py": "def f(x):\n    return x + 1\n",
        "documented.py": 'def f(x):\n    """Add one."""\n    # why not\n    return x+1\n',
        "changed.py": "def f(x):\n    return x + 2\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    plain, documented, changed = (code_hash([tmp_path / name]) for name in texts)
    assert plain == documented
    assert plain != changed


def test_code_hash_is_the_same_in_every_python(tmp_path: Path) -> None:
    """Type parameters came with Python 3.12 and empty fields went from dumps with 3.13."""
    source = tmp_path / "every.py"
    source.write_text(
        "class Kind(list):\n    size: int = 3\n\n\n"
        "async def f(x, *rest, key=None):\n    return f'{x!r:>8} {rest} {key}'\n"
    )
    assert code_hash([source]) == "e4110b1e2bd031a9"


@pytest.mark.parametrize(
    ("name", "opinion_aware", "trained_on"),
    [
        ("niqe", False, ()),
        ("musiq", True, ("koniq10k",)),
        ("metaiqa", True, ("tid2013", "kadid10k", "clive")),
        ("qualiclip-lite", False, ()),
        ("qualiclip+", True, ("koniq10k",)),
        ("clipiqa", False, ()),
        ("clipiqa@model_type=clipiqa+", None, ()),
        ("niqe@pretrained_model_path=own.mat", None, ()),
        ("niqe@pretrained_model_path=own.mat,opinion_aware=false", False, ()),
        ("some.module:function@lower_better=true", None, ()),
        ("cmd:score.sh@lower_better=true,trained_on=clive+bid", True, ("clive", "bid")),
    ],
)
def test_facts_say_what_a_scorer_has_seen(name: str, opinion_aware: bool | None, trained_on: tuple[str, ...]) -> None:
    known = facts(name)
    assert (known.opinion_aware, known.trained_on) == (opinion_aware, trained_on)


def test_declared_facts_are_not_given_to_the_scorer_and_leave_its_fingerprint() -> None:
    plain = create_scorer("tests.support.harness_data:brightness")
    told = create_scorer("tests.support.harness_data:brightness@opinion_aware=false,licence=MIT")
    assert told.identity == plain.identity
    assert (told.facts.opinion_aware, told.facts.licence) == (False, "MIT")
    with pytest.raises(ScorerError, match="trained_on needs true"):
        create_scorer("tests.support.harness_data:brightness@opinion_aware=false,trained_on=clive")


@pytest.fixture
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of pyiqa's files, without a network."""
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    with without_network():
        yield tmp_path


def test_weights_that_are_missing_are_named_with_address_and_folder(no_downloads: Path) -> None:
    with pytest.raises(ScorerError) as raised:
        create_scorer("niqe", device="cpu")
    assert "put niqe_modelparameters.mat from https://" in str(raised.value)
    assert f"into {no_downloads}" in str(raised.value)
    assert weight_files("niqe", fetch=False) == [no_downloads / "niqe_modelparameters.mat"]
    with pytest.raises(ScorerError, match="put niqe_modelparameters"):
        weight_files("niqe", fetch=True)


def test_files_that_are_there_are_named_too(no_downloads: Path) -> None:
    files = [no_downloads / "niqe_modelparameters.mat"]
    scipy.io.savemat(files[0], {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)})
    assert weight_files("niqe", fetch=True) == weight_files("niqe", fetch=False) == files
    assert weight_files("qualiclip-lite", fetch=True)[0].name == "qualiclip-lite.safetensors"


@pytest.mark.parametrize(
    ("name", "failing"),
    [("niqe", {"black": "linalg", "grey": "", "ramp": ""}), ("brisque", {"black": "non zero variance", "grey": ""})],
)
def test_pictures_without_statistics_to_fit_are_named_and_stop_nothing(
    name: str, failing: dict[str, str], no_downloads: Path, photographs: list[np.ndarray]
) -> None:
    """Seeded parameters do: what fails are the statistics of the picture, whatever they are compared with."""
    scipy.io.savemat(
        no_downloads / "niqe_modelparameters.mat", {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)}
    )
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.rand(size, generator=generator) for size in ((5, 1), (5, 36)))
    torch.save(tuple(vectors), no_downloads / "brisque_svm_weights.pth")
    ramp = np.broadcast_to(np.arange(192, dtype=np.uint8)[:, None], (192, 192, 3))
    flat = {name: np.full((192, 192, 3), value, np.uint8) for name, value in (("black", 0), ("grey", 128))}
    pictures = {**flat, "ramp": ramp, "photo": photographs[0][:192, :192]}
    row = take_snapshot(Pictures(pictures), [name]).scorers[name]
    assert row["failures"].keys() == failing.keys()
    for picture, reason in failing.items():
        assert reason in row["failures"][picture]
    assert row["scores"].keys() == pictures.keys() - failing.keys()
