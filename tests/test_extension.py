"""Open for extension: one new thing of every kind, each one record or file in a copy of both packages, at work.

What is added here is what CONTRIBUTING asks for, and nothing else: a place that has to be told of a new thing as well
shows as an error of this test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.harness_data import picture, write_metadata

ROOT = Path(__file__).parent.parent

DISTORTION = {
    '    "sharpness": "#b43228",\n': '    "printing": "#0a0a0a",\n',
    "    # sharpness and contrast\n": """    Distortion(
        "halftone", "printing", spatial.quantization, (32, 16, 8), "values per channel"
    ),
""",
}
LOSS = {
    '    Loss("content", _content),\n': '    Loss("level", lambda seen, _: seen.similarities.square().mean()),\n',
    "    attribute_margin: float = 6.75e-2\n": "    level_weight: float = 0.0\n",
}
RUNTIME = {
    '        Runtime("eager", lambda model: None),\n': '        Runtime("plain", lambda model: None, device="cpu"),\n'
}
TOWER = {
    "import timm\n": "from qualiclip_plugin.models.colours import Colours\n",
    "TOWERS: Mapping[str, Callable[..., nn.Module]] = {\n": '    "colours": Colours,\n',
}
STATISTIC = {
    "_RECORDS = (\n": """    Statistic(
        "agreement",
        "Agreement",
        "Spearman's rank correlation under another name. -1 to 1.",
        _rated,
        lambda scores, images: srcc(scores, images.opinions),
        lambda scores, images: resampled_srcc(scores, images.opinions),
        headline=True,
    ),
""",
}
PAGE = {
    '    Page("index.html", "Leaderboard", overview),\n': """    Page(
        "sizes.html",
        "Sizes",
        lambda cells, _: {"sizes": [(cell.dataset, cell.content["dataset"]["images"]) for cell in cells]},
    ),
""",
}
ADDED = {
    "qualiclip_plugin/distortions/registry.py": DISTORTION,
    "qualiclip_plugin/training/objective.py": LOSS,
    "qualiclip_plugin/runtimes/__init__.py": RUNTIME,
    "qualiclip_plugin/models/backbones.py": TOWER,
    "harness/statistics/registry.py": STATISTIC,
    "harness/report/__init__.py": PAGE,
}
"""File -> a line that is there -> what is put after it."""

FILES = {
    "qualiclip_plugin/models/colours.py": '''
from torch import nn

from qualiclip_plugin.models.conv_towers import ConvTower


class Colours(ConvTower):
    """The mean of a convolution."""

    parts = ("feature_map",)
    tile_bytes, kept_bytes, openvino_bytes = 100, 3, 100

    def __init__(self, width, embed_dim):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 8, stride=8), nn.Linear(width, embed_dim)

    def feature_map(self, images):
        return self.conv(self.cast(images))

    def forward(self, images):
        return self.head(self.feature_map(images).mean((2, 3)))
''',
    "harness/report/templates/sizes.html.j2": """{% extends "base.html.j2" %}
{% block title %}Sizes{% endblock %}
{% block main %}{% for name, images in sizes %}<p>{{ name }}: {{ images }} images</p>{% endfor %}{% endblock %}
""",
    "harness/data/catalogue/postcards.yaml": """name: postcards
version: "1"
description: Pictures of postcards.
licence: as their owner says
citation: nobody
images: 3
archive:
  images: {file: cards.zip, address: "https://example.org/cards.zip"}
  labels: {file: cards.csv, address: "https://example.org/cards.csv"}
  path: "**/{name}"
columns: {image: name, opinion: mos}
opinion: {kind: mos, lower_better: false, range: [0, 5]}
verified: run
example: "name,mos\\n1.png,1\\n2.png,2\\n3.png,3"
""",
    "blackness.py": """
def score(images):
    return 1 - images.mean((1, 2, 3))


score.lower_better = False
""",
    "prints/prints.yaml": """name: prints
version: "1"
description: Printed pictures.
licence: as their owner says
citation: nobody
columns: {image: file_name, opinion: mos}
opinion: {kind: mos, lower_better: false, range: [0, 10]}
folder: ../rated
""",
}

SCRIPT = """
import json, sys
from pathlib import Path

import torch

import harness
from harness.data.spec import shipped_specs
from harness.report import write_report
from qualiclip_plugin.distortions.contact_sheet import contact_sheet
from qualiclip_plugin.models.backbones import build_image_encoder
from qualiclip_plugin.models.prompts import ATTRIBUTES, paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import load_config
from qualiclip_plugin.training.trainer import train
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.checkpoint import save_checkpoint
from qualiclip_plugin.weights.loading import load_model

folder = Path.cwd()
assert Path(harness.__file__).parent.parent == folder
torch.manual_seed(0)
backbone = {"embed_dim": 8, "vision_cfg": {"colours": {"width": 16}}}
start = QualiCLIP(
    build_image_encoder(backbone), paired_features(torch.randn(14, 8)), 10.0, (0.5,) * 3, (0.25,) * 3, ATTRIBUTES,
    backbone=backbone,
)
save_checkpoint(folder / "start.safetensors", start, {"licence": "none"})
config = load_config("laptop", [
    f"weights={folder / 'start.safetensors'}", "steps=2", "batch_size=2", "crop_size=64", "distortions=halftone",
    "levels=3", "level_weight=0.5", "content_weight=0", "cpu=true", "workers=1",
    "validation_photos=1", "validation_size=64",
    f"attribute_kinds={{printing: [{ATTRIBUTES[0]}]}}",
    "attribute_weight=1",
])
result = train(config, str(folder / "rated"), str(folder / "run"))
pixels = read_image(folder / "rated/0.png")
contact_sheet(pixels, folder / "sheet.png", ["halftone", "jpeg"])
model = load_model(str(result.model), runtime="plain")
table = harness.evaluate("blackness:score", ["prints"], output=folder / "results", include=[folder / "prints"])
write_report(folder / "results", folder / "site")
print(json.dumps({
    "log": (folder / "run/log.csv").read_text().splitlines()[0].split(","),
    "validated": result.validation["kinds"].get("halftone"),
    "score": model(pixels[None]).item(),
    "map": list(model.quality_map(pixels[None]).shape),
    "agreement": table["agreement"].tolist(),
    "srcc": table["srcc"].tolist(),
    "page": (folder / "site/sizes.html").read_text(),
    "dataset": (folder / "site/dataset-prints.html").read_text(),
    "verified": shipped_specs()["postcards"].verified,
}))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both packages with one new thing of every kind, and a folder of rated pictures."""
    folder = tmp_path_factory.mktemp("extended")
    for package in ("qualiclip_plugin", "harness"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, copy_function=os.symlink, ignore=ignored)
    for name, lines in ADDED.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for line, added in lines.items():
            assert text.count(line) == 1, f"{name} has no line {line!r} to put a record after"
            text = text.replace(line, line + added)
        (folder / name).unlink()
        (folder / name).write_text(text, encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "rated").mkdir()
    for index in range(4):
        Image.fromarray(np.kron(picture(3 * index), np.ones((2, 3, 1), np.uint8))).save(folder / f"rated/{index}.png")
    write_metadata(folder / "rated", [{"file_name": f"{index}.png", "mos": index} for index in range(4)])
    return folder


def test_one_more_of_every_kind_is_one_record_or_file(extended: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended), "QUALICLIP_CACHE": str(extended / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "level" in found["log"]
    assert 0 <= found["validated"] <= 1
    assert 0 < found["score"] < 1
    assert found["map"][:2] == [1, 1]
    assert found["agreement"] == found["srcc"] == [-1]
    assert "prints: 4 images" in found["page"]
    assert ">Sizes</a>" in found["dataset"]
    assert "Agreement" in found["dataset"]
    assert found["verified"] == "run"
    assert (extended / "sheet.png").is_file()
