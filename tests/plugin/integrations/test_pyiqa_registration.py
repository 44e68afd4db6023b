"""pyiqa finds this package by itself, in every order of import, each of which is tried in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from qualiclip_plugin.utils.extras import core_packages, plain
from qualiclip_plugin.utils.images import read_image, to_float
from qualiclip_plugin.weights.loading import load_model
from tests.support.rounding import bound_of

CREATE = """
import pyiqa, torch

for _ in range(2):
    metric = pyiqa.create_metric("qualiclip", weights="lite", device="cpu")
    assert type(metric.net).__name__ == "PyiqaQualiCLIP", type(metric.net)
    assert metric(torch.rand(1, 3, 64, 64)).shape == (1, 1)
"""


def test_pyiqas_own_command_scores_with_the_weights_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image
    from pyiqa.pyiqa_cmd import main

    Image.new("RGB", (64, 48), (120, 90, 60)).save(tmp_path / "a.png")
    monkeypatch.setenv("QUALICLIP_WEIGHTS", "lite")
    monkeypatch.setattr(sys, "argv", ["pyiqa", "qualiclip", "--target", str(tmp_path), "--device", "cpu"])
    main()
    lite = load_model("lite")
    score = lite(to_float(read_image(tmp_path / "a.png"))[None]).item()
    (shown,) = re.findall(r"'mean': [^\d]*64\(([\d.e-]+)\)", capsys.readouterr().out)
    assert float(shown) == pytest.approx(score, abs=bound_of(lite))


def run(code: str, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter in which every warning of the registry is an error."""
    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        capture_output=True, text=True, timeout=300, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Warning" not in result.stderr, result.stderr
    return result.stdout


def test_installed_entry_point_is_enough():
    run("import sys\n" + CREATE + "assert 'pkg_resources' in sys.modules")


def test_the_core_installation_alone_scores_and_names_the_extra_of_what_it_lacks(photo_folder, tmp_path):
    here = metadata.packages_distributions()
    core = core_packages()
    absent = {name for name, owners in here.items() if not core & {plain(owner) for owner in owners}}
    assert {"tabulate", "openvino"} & here.keys() <= absent
    # Without `pkg_resources`: so do setuptools 81 and newer look to openai-clip.
    absent = (absent | {"pkg_resources"}) - {"harness", "qualiclip_plugin", "pip", "setuptools"}
    lacking = (
        "import contextlib\nfrom harness.cli import main as harness\nfrom harness.scorers.start import availability\n"
        "print([start.reason for start in availability(['clipiqa'])])\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stderr(sys.stdout):\n"
        "    sys.argv = ['iqa-harness', 'list']\n    harness()\n"
    )
    score = (
        "from qualiclip_plugin.cli import main\n"
        f"sys.argv = ['qualiclip', 'score', {photo_folder!r}, '--gallery', {str(tmp_path / 'page')!r}]\n"
        "main()\n"
    )
    printed = run(f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n" + CREATE + lacking + score)
    assert 'setuptools<81,>=61 is missing: pip install "qualiclip-plugin[harness]"' in printed
    assert 'tabulate>=0.9 is missing: pip install "qualiclip-plugin[harness]"' in printed
    assert "photo00.png" in printed


def test_every_order_of_import():
    own = "import pyiqa.archs.qualiclip_arch as own\n"
    lazy = "assert 'qualiclip-lite' in pyiqa.list_models(), pyiqa.list_models()\n"
    plugin = "import qualiclip_plugin\n"
    run(own + CREATE + plugin + lazy)
    run(plugin + CREATE + own + lazy)
    run(CREATE + own + "assert own.QualiCLIP.__module__ == 'pyiqa.archs.qualiclip_arch'\n" + plugin + lazy)


def test_lite_metric_by_name_and_as_loss():
    run(
        "import qualiclip_plugin, pyiqa, torch\n"
        "loss = pyiqa.create_metric('qualiclip-lite', as_loss=True, device='cpu')\n"
        "x = torch.rand(2, 3, 64, 64, requires_grad=True)\n"
        "loss(x).backward()\n"
        "assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0\n"
        "score, attributes = pyiqa.create_metric('qualiclip-lite', device='cpu')(x.detach(), attributes=True)\n"
        "assert score.shape == (2, 1) and all(v.shape == (2,) for v in attributes.values())\n"
    )


def test_official_default_never_becomes_another_model(tmp_path):
    run(
        "import pyiqa\n"
        "try:\n    pyiqa.create_metric('qualiclip', device='cpu')\n"
        "except Exception as error:\n    assert 'official' in str(error), error\n"
        "else:\n    raise SystemExit('no weights, yet a metric')\n",
        TORCH_HOME=str(tmp_path), HF_HUB_OFFLINE="1",
    )  # fmt: skip


def test_pyiqas_keyword_arguments_are_accepted(tiny_checkpoint):
    run(
        "import pyiqa, torch\n"
        f"metric = pyiqa.create_metric('qualiclip', weights={str(tiny_checkpoint)!r}, device='cpu', backbone='RN50',"
        " temperature=2, n_ctx=16, ctx_init='', prompt_specific_ctx=True, pretrained=True, pos_embedding=False)\n"
        "assert metric(torch.rand(1, 3, 64, 64)).shape == (1, 1)\n"
    )


def test_pyiqas_command_line(tmp_path, photographs, tiny_checkpoint):
    from PIL import Image

    Image.fromarray(photographs[0][:64, :64]).save(tmp_path / "a.png")
    code = (
        "import sys\nfrom pyiqa.pyiqa_cmd import main\n"
        f"sys.argv = ['pyiqa', 'qualiclip', '-t', {str(tmp_path / 'a.png')!r}, '--device', 'cpu']\nmain()\n"
    )
    assert "qualiclip" in run(code, QUALICLIP_WEIGHTS=str(tiny_checkpoint))


@pytest.mark.parametrize("weights", ["qualiclip+", "no-such-weights"])
def test_weights_that_are_no_encoder_are_named(weights):
    from qualiclip_plugin.integrations.pyiqa_arch import PyiqaQualiCLIP
    from qualiclip_plugin.utils.errors import WeightsError

    with pytest.raises(WeightsError, match=weights.replace("+", r"\+")):
        PyiqaQualiCLIP(model_type="qualiclip", weights=weights)
