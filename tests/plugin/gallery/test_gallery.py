"""The gallery of scored pictures: what it holds, that names stay text, and how it behaves in a real browser."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qualiclip_plugin.gallery import check_gallery, page_data, write_gallery
from qualiclip_plugin.gallery.thumbnails import picture_path
from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.scoring.table import WRITERS, read_scores, to_frame, write_scores
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.loading import load_model
from tests.support.commands import run_main

HOSTILE = """<img src=x onerror="alert(1)">&'</script>"""
TURNED = "turned \u202egnp\nline.png"


def rows_of(folder: Path) -> list[ScoredImage]:
    """Three pictures with a score, one that is gone, one that is no picture."""
    scores = {"good.png": 0.9, "fair.png": 0.5, f"{HOSTILE.replace('/', '')}.png": 0.2, TURNED: 0.7}
    rows = []
    for name, score in scores.items():
        path = folder / name
        Image.new("RGB", (64, 40), (int(score * 250), 80, 20)).save(path, "PNG")
        rows.append(ScoredImage(str(path), score, {"sharp": 1 - score, "clean": score / 2}, 64, 40, note="a note"))
    (folder / "broken.png").write_text("no picture")
    rows.append(ScoredImage(str(folder / "broken.png"), error=f"{folder / 'broken.png'}: not an image"))
    rows.append(ScoredImage(str(folder / "gone.png"), 0.1, {"sharp": 0.5, "clean": 0.5}, 64, 40))
    return rows


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return to_frame(rows_of(tmp_path_factory.mktemp("photos")), ("sharp", "clean"))


@pytest.fixture(scope="module")
def site(scores: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(scores, tmp_path_factory.mktemp("gallery") / "out", large=3).parent


def table_of(site: Path) -> dict[str, Any]:
    return json.loads(
        (site / "data.js").read_text(encoding="ascii").removeprefix("const TABLE = ").removesuffix(";\n")
    )


# --- what it holds ------------------------------------------------------------------------------------


def test_rows_go_from_worst_to_best_and_end_with_failures(site: Path) -> None:
    table = table_of(site)
    assert table["measures"][0] == {"name": "score", "values": [0.1, 0.2, 0.5, 0.7, 0.9, None]}
    assert [measure["name"] for measure in table["measures"]] == ["score", "sharp", "clean"]
    assert [path.split(".")[0] for path in table["paths"]][-2:] == ["good", "broken"]
    assert table["errors"] == {"5": "not an image"}
    assert table["lacking"].keys() == {"0", "5"}
    assert table["lacking"]["0"] == "no such file"


def test_names_are_text_in_the_script(site: Path, scores: pd.DataFrame) -> None:
    table, script = table_of(site), (site / "data.js").read_text(encoding="ascii")
    assert {table["prefix"] + path for path in table["paths"]} == set(scores["path"])
    assert "<" not in script
    assert [text.rpartition("/")[2] for text in table["shown"].values()] == ["turned \\u202egnp\\nline.png"]


def test_pictures_are_upright_small_and_without_metadata(tmp_path: Path) -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, :300] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"  # turned by a quarter; maker
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    frame = to_frame([ScoredImage(str(tmp_path / "phone.jpg"), 0.5)])
    site = write_gallery(frame, tmp_path / "out", large=1).parent
    with Image.open(site / "thumbnails/0/0.jpg") as thumbnail:
        assert thumbnail.size == (144, 288)
        assert np.asarray(thumbnail)[20, 72].min() > 240
        assert np.asarray(thumbnail)[268, 72].max() < 15
        assert not thumbnail.getexif()
    with Image.open(site / "large/0/0.jpg") as large:
        assert large.size == (300, 600)


def test_only_the_worst_have_a_large_picture(site: Path) -> None:
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.jpg")}
    assert found == {*(f"thumbnails/0/{row}.jpg" for row in (1, 2, 3, 4)), "large/0/1.jpg", "large/0/2.jpg"}


def test_an_earlier_gallery_is_replaced_and_other_files_stay(scores: pd.DataFrame, tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_gallery(scores, target)
    write_gallery(scores.iloc[:1], target)
    assert len(list(target.rglob("thumbnails/**/*.jpg"))) == 1
    (target / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"thesis\.txt, which is no part of a gallery"):
        check_gallery(target)
    with pytest.raises(ConfigError, match="is a file"):
        check_gallery(target / "thesis.txt")


def test_a_table_without_rows_or_with_an_infinite_score_is_refused(scores: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        write_gallery(scores.iloc[:0], tmp_path / "out")
    wrong = scores.assign(score=float("inf"))
    with pytest.raises(ConfigError, match="has the score inf"):
        page_data(wrong, [None] * len(wrong), 0)


@pytest.mark.parametrize("suffix", WRITERS)
def test_scores_are_read_as_they_were_written(scores: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    write_scores(scores, tmp_path / f"scores{suffix}")
    pd.testing.assert_frame_equal(read_scores(tmp_path / f"scores{suffix}"), scores)


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_no_table_of_scores_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    for content in (b"", b"\x00\xff\xfe", b'{"path": 3}\n', b"path,score\na,b\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"other\\{suffix}"):
            read_scores(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_scores(tmp_path / f"absent{suffix}")


def test_score_writes_a_gallery_and_so_does_gallery_from_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photographs[0][:96, :96]).save("a.png")
    assert run_main(monkeypatch, "qualiclip", "score", "a.png", "--output", "s.csv", "--gallery", "one") in (0, None)
    assert run_main(monkeypatch, "qualiclip", "gallery", "s.csv", "--output", "two") in (0, None)
    assert "gallery: one/index.html" in capsys.readouterr().err
    assert table_of(Path("one")) == table_of(Path("two"))
    assert run_main(monkeypatch, "qualiclip", "score", "a.png", "--maps") == 2
    assert run_main(monkeypatch, "qualiclip", "score", "a.png", "--engine", "ray", "--gallery", "one") == 2
    assert run_main(monkeypatch, "qualiclip", "score", ".", "--gallery", "one") == 2
    assert "its thumbnails would be scored" in capsys.readouterr().err


# --- in a browser -------------------------------------------------------------------------------------


def visit(browser: Any, site: Path, problems: list[str]) -> Any:
    """Open the gallery; problems are console messages above "info", errors and requests outside the folder."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    inside = (site.as_uri(), "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(inside) or problems.append(request.url))
    page.goto((site / "index.html").as_uri(), wait_until="networkidle")
    return page


def shown(page: Any) -> list[str]:
    """Scores of the tiles, from left to right and from top to bottom."""
    order = "all.sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
    return page.eval_on_selector_all(".tile", f"all => {order}.map(t => t.querySelector('.line b').textContent)")


def saved(page: Any, button: str) -> list[str]:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_text(encoding="utf-8").splitlines()


def test_order_threshold_marks_and_saved_lists(browser: Any, site: Path, scores: pd.DataFrame) -> None:
    problems: list[str] = []
    page = visit(browser, site, problems)
    order = ["0.100", "0.200", "0.500", "0.700", "0.900", "no score"]
    assert shown(page) == order
    by_score = dict(zip(scores["score"], scores["path"], strict=True))
    # The handle is dragged to the middle, and what lies below it is dropped.
    box = page.locator("#threshold").bounding_box()
    page.mouse.move(box["x"] + 10 + (box["width"] - 20) * float(page.locator("#at").inner_text()), box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40)
    page.mouse.up()
    assert 0.55 < float(page.locator("#at").inner_text()) < 0.65
    page.locator("[data-side=below]").click()
    assert shown(page) == order[:3]
    page.locator("#controls [data-mark='2']").click()
    assert saved(page, "#save-drop") == [by_score[0.1], by_score[0.2], by_score[0.5]]
    # Filters of several measures hold together, and a failure passes none.
    page.locator("#measure").select_option(label="sharp")
    assert shown(page) == ["0.100", "0.500", "0.200"]
    page.locator("#chips button").click()
    page.locator("#measure").select_option(label="score")
    page.locator("#status").select_option("failed")
    assert shown(page) == ["no score"]
    page.locator("#status").select_option("")
    # Keys: to the fourth picture, closely, keep; its name holds a line break and is shown and saved escaped.
    page.locator("#grid").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter", "k"):
        page.keyboard.press(key)
    assert "turned \\u202egnp\\nline.png" in page.locator("#viewer").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    page.keyboard.press("k")
    page.keyboard.press("Control+z")
    assert [line.rpartition("/")[2] for line in saved(page, "#save-keep")] == ["turned \\u202egnp\\nline.png"]
    assert HOSTILE.replace("/", "") in page.locator("#grid").inner_text()
    # Marks are there when the page is opened again.
    page.reload(wait_until="networkidle")
    assert page.locator(".tile[data-mark='2']").count() == 3
    page.close()
    assert problems == []


def test_hover_and_a_key_show_the_map(browser: Any, photographs: list[np.ndarray], tmp_path: Path) -> None:
    pixels = photographs[0][:200, :300].copy()
    pixels[:, :150] = pixels[::8, :150:8].repeat(8, 0).repeat(8, 1)[:, :150]
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "c.png").touch()
    rows = [ScoredImage(str(tmp_path / name), score) for name, score in (("a.png", 0.3), ("b.png", 0.6))]
    frame = to_frame([*rows, ScoredImage(str(tmp_path / "c.png"), error="empty")])
    site = write_gallery(frame, tmp_path / "out", large=1, model=load_model("lite")).parent
    assert [path.relative_to(site).as_posix() for path in site.glob("maps/**/*.jpg")] == ["maps/0/0.jpg"]
    with Image.open(site / "maps/0/0.jpg") as drawn:
        assert drawn.size == (300, 200)
        bad, good = (np.asarray(drawn)[:, part, 1].mean() for part in (slice(0, 100), slice(200, 300)))
    assert good > bad + 30  # yellow against violet
    problems: list[str] = []
    page = visit(browser, site, problems)

    def address(place: str) -> str:
        return page.locator(f"{place} img").get_attribute("src")

    page.locator("#tile-0 .frame").hover()
    assert address("#tile-0") == "maps/0/0.jpg"
    page.locator("#tile-1 .frame").hover()
    assert (address("#tile-0"), address("#tile-1")) == ("thumbnails/0/0.jpg", "thumbnails/0/1.jpg")
    page.locator("#tile-0 .frame").click()
    assert address("#viewer") == "large/0/0.jpg"
    page.keyboard.press("m")
    assert address("#viewer") == "maps/0/0.jpg"
    page.keyboard.press("ArrowRight")
    assert address("#viewer") == "thumbnails/0/1.jpg"
    page.close()
    assert problems == []


@pytest.mark.slow
def test_a_hundred_thousand_pictures_stay_few_elements(browser: Any, tmp_path: Path) -> None:
    count = 100_000
    names = [f"photos/{row:06}.jpg" for row in range(count)]
    values = np.random.default_rng(0).random((count, 3))
    frame = to_frame([ScoredImage(names[0], 0.5, {"sharp": 0.5, "clean": 0.5}, 64, 40)], ("sharp", "clean"))
    frame = pd.concat([frame] * count, ignore_index=True)
    frame[["score", "sharp", "clean"]] = values
    frame["path"] = pd.Series(names, dtype="string")
    Image.new("RGB", (64, 40)).save(tmp_path / "one.jpg")
    site = write_gallery(frame.iloc[:1], tmp_path / "out", files=[tmp_path / "one.jpg"], large=0).parent
    data = page_data(frame.sort_values("score"), [None] * count, 0)
    (site / "data.js").write_text(f"const TABLE = {json.dumps(data)};\n")
    thumbnail = (site / "thumbnails/0/0.jpg").read_bytes()
    for row in range(count):
        path = site / picture_path("thumbnails", row)
        if row % 1000 == 0:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(thumbnail)
            first = path
        else:
            os.link(first, path)
    problems: list[str] = []
    page = visit(browser, site, problems)
    for place in (0.3, 0.8, 1.0):
        page.evaluate(f"scrollTo(0, {place} * document.documentElement.scrollHeight)")
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert page.locator(".tile").count() < 100
    assert page.locator(f"[aria-posinset='{count}']").count() == 1
    page.locator("#measure").select_option(label="clean")
    page.locator("[data-side=below]").click()
    assert shown(page)[0] == f"{frame.loc[frame['clean'].idxmin(), 'score']:.3f}"
    page.close()
    assert problems == []
