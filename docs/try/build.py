"""Build the page that scores pictures in a browser.

    python docs/try/build.py OUTPUT

The folder holds the page, ``qualiclip-lite`` as ONNX, onnxruntime-web as npm has it, and three pictures; any web
server can serve it (``python -m http.server --directory OUTPUT``). Needs npm and the extra ``onnx``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from matplotlib import colormaps
from PIL import Image
from skimage import data

from qualiclip_plugin.distortions.contact_sheet import degrade_image
from qualiclip_plugin.gallery import TEMPLATES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.models.quality_map import chosen_windows
from qualiclip_plugin.runtimes.export import MIN_EXPORT_SIZE, export_onnx
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.loading import load_model

HERE = Path(__file__).parent
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "try.css", "try.js", "worker.js")
THEME = ("theme.css", "theme.js")
MAX_PIXELS = 4_000_000
"""Of a picture: its feature maps take 300 bytes a pixel, and a phone gives a page about two gigabytes."""
EXAMPLES = (
    ("a photograph", "jpeg", 0),
    ("blurred", "gaussian_blur", 3),
    ("JPEG, level 5", "jpeg", 5),
)


def build(output: Path) -> Path:
    """Write the page and all that it loads into a folder; returns the page.

    Raises:
        ConfigError: npm is missing or has no such package, or the graph cannot be exported.
        OSError: The folder cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_runtime(output)
    model = load_model("lite")
    export_onnx(model, output / "model.onnx")
    examples = write_examples(output)
    (output / "model.json").write_text(json.dumps(describe(model, examples)), encoding="utf-8")
    for folder, names in ((HERE, PAGE), (TEMPLATES, THEME)):
        for name in names:
            shutil.copyfile(folder / name, output / name)
    return output / "index.html"


def write_runtime(output: Path) -> None:
    """Fetch the pinned package from npm, verify it, and take its files for WebAssembly.

    Raises:
        ConfigError: npm is missing, does not get the package, or gets other content.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"npm is not installed: it fetches {RUNTIME}")
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(  # noqa: S603
            [npm, "pack", RUNTIME, "--silent"], cwd=place, capture_output=True, text=True, check=False
        )
        archives = list(Path(place).glob("*.tgz"))
        if done.returncode or not archives:
            raise ConfigError(f"npm did not fetch {RUNTIME}: {done.stderr.strip() or 'it says no reason'}")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != RUNTIME_SHA512:
            raise ConfigError(f"{RUNTIME}: its SHA-512 is {digest}, not {RUNTIME_SHA512}")
        with tarfile.open(archives[0]) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # noqa: S101 (narrows the type: the digest fixes the content)
                (output / name).write_bytes(member.read())


def write_examples(output: Path) -> list[dict[str, str]]:
    """Write one photograph of the scikit-image wheel as it is and degraded; returns file and title of each."""
    photograph = torch.from_numpy(data.rocket().copy()).permute(2, 0, 1)
    examples = []
    for title, kind, level in EXAMPLES:
        name = f"example-{kind}-{level}.png"
        Image.fromarray(degrade_image(photograph, kind, level).permute(1, 2, 0).numpy()).save(output / name)
        examples.append({"file": name, "title": title})
    return examples


def describe(model: QualiCLIP, examples: list[dict[str, str]]) -> dict[str, object]:
    """What the page must know of the model."""
    window, stride = chosen_windows(model.image_encoder)
    return {
        "attributes": model.attributes,
        "window": window,
        "stride": stride,
        "smallest": MIN_EXPORT_SIZE,
        "max_pixels": MAX_PIXELS,
        "colours": [[round(255 * part) for part in colour[:3]] for colour in map(colormaps["viridis"], range(256))],
        "examples": examples,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    try:
        print(build(Path(sys.argv[1])))
    except ConfigError as error:
        raise SystemExit(str(error)) from error
