"""``docs/gallery.jpg``: the gallery as a browser shows it.

    python results/front/gallery.py

Photographs of the scikit-image wheel, degraded and scored by ``qualiclip-lite``; one tile is under the pointer and
shows its map. Needs Playwright and a Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from picture import tensor
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from harness.data.ladders import whole_photograph
from qualiclip_plugin.distortions.contact_sheet import degrade_image
from qualiclip_plugin.gallery import write_gallery
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.scoring.table import to_frame
from qualiclip_plugin.weights import load_model

PICTURE = Path(__file__).parents[2] / "docs" / "gallery.jpg"
NAMES = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
KINDS = (("jpeg", 0), ("gaussian_blur", 3), ("white_noise", 4), ("jpeg", 4), ("darken", 4))
SIZE = (1280, 860)


def make_site(folder: Path, model: QualiCLIP) -> Path:
    """The gallery's page."""
    photos = folder / "photos"
    photos.mkdir()
    for name in NAMES:
        for kind, level in KINDS:
            pixels = degrade_image(tensor(whole_photograph(name)), kind, level).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(photos / (f"{name}-{kind}-{level}.png" if level else f"{name}.png"))
    files = sorted(photos.iterdir())
    frame = to_frame(score_files(files, model, attributes=True), model.attributes)
    return write_gallery(frame, folder / "gallery", model=model)


def act(page: Page) -> None:
    """Marks three pictures to drop and one to keep, and rests on the next one."""
    grid = page.locator("#grid")
    grid.focus()
    for key in ("d", "ArrowRight", "d", "ArrowRight", "d", "ArrowRight", "k"):
        grid.press(key)
    page.locator("#tile-5 .frame").hover()
    page.wait_for_load_state("networkidle")


def main() -> None:
    """Write the picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        site = make_site(Path(place), load_model("lite"))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light")
        page.goto(site.as_uri(), wait_until="networkidle")
        act(page)
        page.screenshot(path=PICTURE, type="jpeg", quality=85)
        browser.close()
    print(PICTURE)


if __name__ == "__main__":
    main()
