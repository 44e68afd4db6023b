"""The page that scores pictures in a browser: it computes what Python computes, and asks no other server."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qualiclip_plugin.scoring.map_files import map_of_file
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.loading import load_model

BUILD = Path(__file__).parents[1] / "docs" / "try" / "build.py"
TOLERANCE = 1e-3


def load_build() -> Any:
    spec = spec_from_file_location("try_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(lite_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The built page on a server of this machine; the model is exported once for all tests."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    build, folder = load_build(), tmp_path_factory.mktemp("try")
    build.export_onnx = lambda _, path: shutil.copyfile(lite_onnx, path)
    try:
        build.build(folder)
    except ConfigError as error:
        if "did not fetch" not in str(error):
            raise
        pytest.skip(f"needs a registry of npm: {error}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def pictures(photographs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five generated pictures: sharp, coarse, dark, noisy, and transparent, of odd sizes."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    sharp = photographs[0][100:301, 120:403]
    noisy = np.clip(photographs[3][40:240, 60:220] + random.normal(0, 40, (200, 160, 3)), 0, 255).astype(np.uint8)
    alpha = np.full((*photographs[2].shape[:2], 1), 255, np.uint8)
    alpha[50:120] = 0
    images = {
        "sharp": sharp,
        "coarse": sharp[::4, ::4].repeat(4, 0).repeat(4, 1),
        "dark": photographs[1][:150, :211] // 4,
        "noisy": noisy,
        "transparent": np.concatenate([photographs[2], alpha], axis=2)[:180, :240],
    }
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def open_page(browser: Any, address: str, problems: list[str], *, max_pixels: int = 0, **options: Any) -> Any:
    """The page with its model; problems are console messages, errors and requests to anybody else."""
    page = browser.new_page(**options)
    if max_pixels:
        page.route(
            "**/model.json", lambda route: route.fulfill(json={**route.fetch().json(), "max_pixels": max_pixels})
        )
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    allowed = (address, "data:", f"blob:{address}")
    page.context.on("request", lambda request: request.url.startswith(allowed) or problems.append(request.url))
    page.goto(address)
    page.wait_for_selector("#files:enabled", state="attached")
    return page


def values(place: Any, name: str) -> list[float]:
    return [float(value) for value in place.locator(f"data.{name}").evaluate_all("all => all.map(one => one.value)")]


def test_scores_attributes_and_maps_equal_pythons(browser: Any, address: str, pictures: list[Path]) -> None:
    problems: list[str] = []
    page = open_page(browser, address, problems)
    page.set_input_files("#files", pictures)
    model = load_model("lite")
    for picture in pictures:
        card = page.locator(".card", has_text=picture.name)
        card.locator("data.score").wait_for()
        score, attributes = model(read_image(picture)[None], attributes=True)
        assert values(card, "score") == pytest.approx([float(score)], abs=TOLERANCE)
        assert values(card, "attribute") == pytest.approx([float(one) for one in attributes.values()], abs=TOLERANCE)
    for picture in pictures[:2]:
        card = page.locator(".card", has_text=picture.name)
        card.locator("button.map").click()
        card.locator("data.high").wait_for()
        found = map_of_file(picture, model).values
        assert values(card, "low") == pytest.approx([found.min()], abs=TOLERANCE)
        assert values(card, "high") == pytest.approx([found.max()], abs=TOLERANCE)
    page.close()
    assert problems == []


def test_what_cannot_be_scored_says_why_and_a_large_picture_is_never_made_small(
    browser: Any, address: str, photographs: list[np.ndarray], tmp_path: Path
) -> None:
    hostile = "<img src=x onerror=alert(1)>.png"
    (tmp_path / hostile).write_text("no picture")
    Image.fromarray(photographs[0][:63, :80]).save(tmp_path / "small.png")
    Image.fromarray(photographs[0][:200, :300]).save(tmp_path / "large.png")
    problems: list[str] = []
    page = open_page(browser, address, problems, max_pixels=15_000, viewport={"width": 360, "height": 740})
    page.set_input_files("#files", sorted(tmp_path.iterdir()))
    large = page.locator(".card", has_text="large.png")
    large.locator("button").click()
    large.locator("data.score").wait_for()
    centre = read_image(tmp_path / "large.png")[:, 50:150, 75:225]
    assert values(large, "score") == pytest.approx([float(load_model("lite")(centre[None]))], abs=TOLERANCE)
    assert "Its centre: 150 × 100 pixels" in large.inner_text()
    assert "cannot read it as a picture" in page.locator(".card", has_text="<img").inner_text()
    assert "80 × 63 pixels: each side needs 64" in page.locator(".card", has_text="small.png").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert problems == []
    assert page.evaluate("fetch('https://example.org').catch(() => 'blocked')") == "blocked"
    assert "Content Security Policy" in problems[0]
    page.close()
