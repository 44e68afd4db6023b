"""Measure everything in this folder again, and the picture of the report in docs/.

    python results/renew.py                          # all steps that can be done here, but the slow one
    python results/renew.py leaderboard picture      # some of them

Steps, in this order:

- ``leaderboard``: the scorers on ``ladders``, and on the panels with human scores where ``--shared``
  has them; only scores that the present code, weights and versions do not have yet are computed, and those of earlier
  ones are removed; then which differences the tests decide (``comparisons.csv``), and what README.md says of them;
- ``slow``, only where it is asked for: IL-NIQE on the same sets, at some seconds of a core an image; it goes on where
  it was stopped;
- ``baseline``: the scores on the guard pictures (``iqa-harness check --update``, which says what changed);
- ``lite``: what the card of the lite model states (``results/lite/measure.py``), where ``--shared`` has photographs;
- ``picture``: ``docs/report.png``, the report on ``ladders`` in a headless Chromium.

``tests/test_results.py`` fails while the first or the last is not up to date.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from harness.results.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PICTURE = ROOT / "docs" / "report.png"
README, BEGIN, END = ROOT / "README.md", "<!-- panels -->\n", "\n<!-- end -->"
PANELS = {
    "livec_panel": "LIVE In the Wild",
    "biq2021_panel": "BIQ2021",
    "agiqa3k_panel": "AI-generated pictures of AGIQA-3K",
}
WIDTH, HEIGHT, SIDE = 1180, 1240, 640
"""Of the picture before it is made smaller, and of its dark column."""


SCORERS = ("qualiclip-lite", "niqe", "brisque", "piqe", "entropy")
"""Those that start with the parameter files at hand, as ``iqa-harness list scorers --available`` says."""
SLOW = "ilniqe"
"""Starts with them as well. ``leaderboard`` runs it where it has been run before, which takes no score anew."""


def panels(shared: Path) -> list[Path]:
    """The folders of images with human scores that are at hand."""
    return sorted(path for path in (shared / "data").glob("*_panel") if path.is_dir())


def datasets(shared: Path) -> list[str]:
    """The ladders, and the panels that are at hand."""
    return ["ladders", *map(str, panels(shared))]


def leaderboard(shared: Path) -> None:
    """Scores, cells and tables."""
    _score(SCORERS, datasets(shared))
    _score([SLOW], [name for name in datasets(shared) if Store(RESULTS).cell_path(SLOW, Path(name).name).exists()])
    _compare()


def slow(shared: Path) -> None:
    """IL-NIQE on the same sets."""
    _score([SLOW], datasets(shared))
    _compare()


def _score(scorers: Iterable[str], datasets: Iterable[str]) -> None:
    asked = [word for name in datasets for word in ("--dataset", name)]
    if asked:
        asked += [word for name in scorers for word in ("--scorer", name)]
        # It ends with 1 where an image has no score, which the tables name.
        _run("-m", "harness", "run", "--output", str(RESULTS), *asked, accepted=(0, 1))


def _compare() -> None:
    """Which differences the tests decide, and what README.md says of them."""
    _run("-m", "harness", "compare", "--output", str(RESULTS))
    prune(Store(RESULTS))
    text, count = re.subn(
        rf"{BEGIN}.*?{END}", f"{BEGIN}{claim()}{END}", README.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{README}: expected one block {BEGIN.strip()}, found {count}")
    README.write_text(text, encoding="utf-8")


def claim() -> str:
    """What README.md says of agreement with people: figures of the table, and which differences the tests decide."""
    import pandas as pd

    figures = pd.read_csv(RESULTS / "leaderboard.csv").set_index(["scorer", "dataset"])
    tests = pd.read_csv(RESULTS / "comparisons.csv")
    tests = tests[
        (tests["test"] == "flip") & (tests[["first", "second"]].isin(["qualiclip-lite", "niqe"]).all(axis=1))
    ]
    verdicts = tests.set_index("dataset")["verdict"]
    own, other = (figures.loc[name].loc[list(PANELS)] for name in ("qualiclip-lite", "niqe"))
    open_ones = [name for key, name in PANELS.items() if verdicts[key] == "undecided"]
    apart = f"do not tell the two apart on {_listed(open_ones)}" if open_ones else "tell the two apart on all three"
    intervals = [
        f"{_short(low)} to {_short(high)}" for low, high in zip(own["srcc_low"], own["srcc_high"], strict=True)
    ]
    places = [f"{_short(value)} on {name}" for value, name in zip(own["srcc"], PANELS.values(), strict=True)]
    text = (
        "Three development panels of 300 pictures with human scores served to choose between recipes. On these its "
        f"SRCC is {_listed(places)} (95 % intervals {', '.join(intervals)}); that of NIQE is "
        f"{_listed(map(_short, other['srcc']))}. The tests {apart} ([results](results/README.md))."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def prune(store: Store) -> None:
    """Remove scores of fingerprints and labels of versions that no cell has any more."""
    cells = [cell for cell in store.cells() if cell["subsets"]]
    kept = {cell["scorer"]["fingerprint"][:16] for cell in cells}
    for folder in store.root.glob("scores/*/*/*"):
        if folder.name not in kept:
            print(f"{folder.relative_to(store.root)}: removed, of an earlier version")
            shutil.rmtree(folder)
    labels = {store.labels_path(f"{cell['dataset']['name']}@{cell['dataset']['version']}") for cell in cells}
    for path in set(store.root.glob("datasets/*.parquet")) - labels:
        print(f"{path.relative_to(store.root)}: removed, of an earlier version")
        path.unlink()


def baseline(shared: Path) -> None:
    """The guard's baseline."""
    _run("-m", "harness", "check", "--update")


def lite(shared: Path) -> None:
    """Figures of the lite model's card."""
    folder = shared / "photos" / "pristine"
    names = RESULTS / "lite" / "held_out.txt"
    if not folder.is_dir():
        print(f"lite: left out, {folder} is not here")
        return
    options = ["--panels", *map(str, panels(shared))]
    _run(str(RESULTS / "lite" / "measure.py"), "--photos", str(folder), "--names", str(names), *options)


def picture(shared: Path) -> None:
    """Parts of the report on the ladders beside each other, light and dark. All photographs are free to share."""
    from harness.report import write_report

    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "results")
        for cell in RESULTS.glob("cells/*/ladders.json"):
            (copy / "cells" / cell.parent.name).mkdir(parents=True)
            shutil.copy(cell, copy / "cells" / cell.parent.name)
        shutil.copytree(RESULTS / "scores", copy / "scores")
        shutil.copytree(RESULTS / "datasets", copy / "datasets")
        site = write_report(copy, Path(place, "site")).parent
        write_picture(photograph(site), PICTURE)


def photograph(site: Path) -> list[bytes]:
    """Screenshots as PNG: the ladders' page from the top, and a scorer's curves and pairs in the dark."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        light, dark = (
            browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            for scheme in ("light", "dark")
        )
        light.goto((site / "dataset-ladders.html").as_uri(), wait_until="networkidle")
        table = light.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT})
        dark.goto((site / "cell-qualiclip-lite--ladders.html").as_uri(), wait_until="networkidle")
        curves = dark.locator("section:has(#ladders)").screenshot()
        dark.goto((site / "dataset-ladders.html").as_uri(), wait_until="networkidle")
        dark.select_option("#defender", "niqe")
        dark.select_option("#attacker", "qualiclip-lite")
        pairs = dark.locator("section:has(#gmad)").screenshot()
        browser.close()
    return [table, curves, pairs]


def write_picture(shots: list[bytes], target: Path) -> None:
    """Lay the screenshots out and write a small PNG that says which table it was made from."""
    from PIL import Image, PngImagePlugin

    table, curves, pairs = (Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots)
    inside = SIDE - 32
    sheet = Image.new("RGB", (WIDTH + SIDE, HEIGHT), curves.getpixel((0, 0)))
    sheet.paste(table, (0, 0))
    shown = _scaled(curves, inside)
    sheet.paste(shown.crop((0, 0, inside, min(690, shown.height))), (WIDTH + 16, 16))
    sheet.paste(_scaled(pairs, inside), (WIDTH + 16, 730))
    small = _scaled(sheet, 1456).quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
    note = PngImagePlugin.PngInfo()
    note.add_text("leaderboard", table_hash())
    small.save(target, optimize=True, pnginfo=note)


def table_hash() -> str:
    """SHA-256 of the committed table."""
    return hashlib.sha256((RESULTS / "leaderboard.csv").read_bytes()).hexdigest()


def _scaled(image: Image.Image, width: int) -> Image.Image:  # noqa: F821
    return image.resize((width, round(image.height * width / image.width)))


def _run(*arguments: str, accepted: Collection[int] = (0,)) -> None:
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)  # noqa: S603 (our own commands)
    if ended.returncode not in accepted:
        sys.exit(ended.returncode)


STEPS: dict[str, Callable[[Path], None]] = {
    "leaderboard": leaderboard,
    "slow": slow,
    "baseline": baseline,
    "lite": lite,
    "picture": picture,
}


def main() -> None:
    """Do the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], help="default: all of them but slow")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="photographs and scores")
    asked = parser.parse_args()
    for name in asked.steps or [name for name in STEPS if name != "slow"]:
        print(f"== {name}", flush=True)
        STEPS[name](asked.shared.resolve())


if __name__ == "__main__":
    main()
