"""The HTML report: what it says, that it escapes what it is given, and how it behaves in a real browser."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from harness.data.open import open_dataset
from harness.report import charts, data, environment, write_report
from harness.report.charts import number
from harness.report.overview import mark_best, overview
from harness.results.measure import Settings
from harness.results.store import Store, StoreError
from harness.run.engine import evaluate, unavailable_cell
from qualiclip_plugin.utils.errors import ConfigError
from tests.support.harness_data import brightness, fake_scorer, picture, write_images, write_metadata

HOSTILE = """<img src=x onerror="alert(1)">&'<b>"""


def roughness(images: torch.Tensor) -> torch.Tensor:
    """Mean step between neighbours; lower is better."""
    return (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))


def red(images: torch.Tensor) -> torch.Tensor:
    """Mean of the first channel plus a reaction to one corner."""
    return images[:, 0].mean(dim=(1, 2)) + images[:, 0, :8, :8].mean(dim=(1, 2))


def make_folder(folder: Path, *, rated: bool) -> Path:
    """Two distortion types, four contents, three levels and the pristine photographs; one hostile name."""
    rows = []
    folder.mkdir()
    for content in range(4):
        for kind in ("", "dark", "no<i>ise"):
            for level in (0,) if not kind else (1, 2, 3):
                base = picture(content + 5).astype(float)
                noise = np.random.default_rng(content).normal(size=base.shape)
                pixels = base - 12 * level if kind == "dark" else base + 10 * level * noise
                name = (
                    f"{content}_{kind.replace('<i>', '')}_{level}.png"
                    if (content, level) != (1, 0)
                    else f"{HOSTILE}.png"
                )
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                row = {"file_name": name, "reference": f"photo{content}", "distortion": kind, "level": level}
                rows.append(row | ({"mos": 5 - level - 0.1 * content - 0.3 * (kind == "dark")} if rated else {}))
    write_metadata(folder, rows)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scorers on a rated set and on a set of ladders, two on images of their own, and one that cannot start."""
    root = tmp_path_factory.mktemp("report")
    store = Store(root / "results")
    scorers = [
        fake_scorer(brightness, "bright", parameters=1234567),
        fake_scorer(roughness, "rough", lower_better=True),
        fake_scorer(red, f"red{HOSTILE}"),
    ]
    for folder in (make_folder(root / "rated", rated=True), make_folder(root / "ladder", rated=False)):
        for scorer in scorers:
            evaluate(scorer, open_dataset(str(folder)), store, settings=Settings())
    names = write_images(root / "single", 8)
    write_metadata(root / "single", [{"file_name": name, "mos": i % 5} for i, name in enumerate(names)])
    for scorer in scorers[:2]:
        evaluate(scorer, open_dataset(str(root / "single")), store)
    reason = "weights <missing> & gone"
    store.write_cell(store.cell_path("absent", "rated"), unavailable_cell("absent", "rated", reason))
    return root


@pytest.fixture(scope="module")
def site(results: Path) -> Path:
    """The report of :func:`results`, with pictures and maps."""
    folders = [str(results / name) for name in ("rated", "ladder", "single")]
    return write_report(results / "results", results / "site", datasets=folders, draws=100, maps="lite").parent


def pages(site: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}


def cell_of(results: Path, scorer: str, dataset: str) -> data.Cell:
    cells = data.load_cells(Store(results / "results"))
    return next(cell for cell in cells if cell.scorer == scorer and cell.dataset == dataset)


# --- content ------------------------------------------------------------------------------------------


def test_every_cell_and_dataset_has_a_page_and_every_link_leads_to_a_file(site: Path) -> None:
    found = pages(site)
    assert len(found) == 2 + 3 + 9
    assert set(json.loads((site / "report.json").read_text())["files"]) >= set(found)
    for name, text in found.items():
        for address in re.findall(r'(?:href|src|data-picture)="([^"]+)"', text):
            plain = html.unescape(address)
            if not plain.startswith(("#", "data:")):
                assert (site / plain).is_file(), f"{name} -> {plain}"


def test_nothing_leads_outside_the_folder(site: Path) -> None:
    for path in (*site.glob("*.html"), *site.glob("*.css"), *site.glob("*.js")):
        assert not re.search(r"https?:|//[a-z]|url\(|@import", path.read_text(encoding="utf-8")), path.name


def test_names_and_reasons_are_escaped_everywhere(site: Path) -> None:
    for name, text in pages(site).items():
        assert HOSTILE not in text, name
        assert "<img src=x" not in text, name
        assert "<i>ise" not in text, name
        assert "<missing>" not in text, name
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in pages(site)["index.html"]


def test_the_leaderboard_shows_the_stored_figures(results: Path, site: Path) -> None:
    text = pages(site)["index.html"]
    for scorer, dataset in (("bright", "rated"), ("rough", "rated"), ("bright", "ladder")):
        cell = cell_of(results, scorer, dataset)
        figure = cell.figure("srcc" if dataset == "rated" else "l_test")
        assert number(figure["value"]) in text
        assert f"{number(figure['low'])} to {number(figure['high'])}" in text
    assert "weights &lt;missing&gt; &amp; gone" in text


def test_the_first_page_says_which_is_ahead_and_how_sure_that_is(results: Path) -> None:
    cells = [cell for cell in data.load_cells(Store(results / "results")) if cell.dataset == "single"]
    for cell in cells:
        cell.content["seconds"] = 0.4  # type: ignore[index]
    compared = data.contest(cells, draws=100)
    (ranking,) = overview(cells, {"single": compared})["rankings"]
    assert [row["rank"] for row in ranking["rows"]] == ["1\N{EN DASH}2"] * 2
    assert [row["letters"] for row in ranking["rows"]] == ["a"] * 2
    best, other = (row["scorer"] for row in ranking["rows"])
    assert ranking["verdict"] == f"{best} has the highest value, but no test separates it from {other}."
    values = [row["cell"]["value"] for row in ranking["rows"]]
    assert values == sorted(values, reverse=True)
    assert [(row["cost"], row["trained_on"]) for row in ranking["rows"]] == [(50, "not recorded")] * 2


def test_versions_page_names_what_identifies_each_cell(results: Path, site: Path) -> None:
    text = pages(site)["versions.html"]
    content = cell_of(results, "bright", "rated").content
    for part in (content["scorer"]["fingerprint"], content["versions"]["torch"], content["date"][:10], "1,234,567"):
        assert part in text


def test_the_report_is_the_same_for_the_same_results(results: Path, site: Path, tmp_path: Path) -> None:
    folders = [str(results / name) for name in ("rated", "ladder", "single")]
    again = write_report(results / "results", tmp_path / "again", datasets=folders, draws=100, maps="lite").parent
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((site / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_pictures_carry_no_metadata_and_are_missing_where_the_dataset_is(
    results: Path, site: Path, tmp_path: Path
) -> None:
    made = list((site / "pictures").rglob("*.jpg"))
    assert made
    for path in made:
        with Image.open(path) as image:
            assert not image.getexif()
    bare = write_report(results / "results", tmp_path / "bare", draws=0).parent
    assert not (bare / "pictures").exists()
    assert "--dataset rated=FOLDER" in pages(bare)["dataset-rated.html"]


# --- refusals -----------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(results: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt, which is no part of a report"):
        write_report(results / "results", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    for content in ("no JSON", '{"findings": []}', '{"made_by": "iqa-harness report", "files": ["index.html"]}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ConfigError, match="which is no part of a report"):
            write_report(results / "results", tmp_path)
        assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(ConfigError, match="is a file"):
        write_report(results / "results", tmp_path / "thesis.txt")


def test_an_earlier_report_is_replaced_whole(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    write_report(results / "results", target, draws=0)
    manifest = json.loads((target / "report.json").read_text())
    (target / "report.json").write_text(json.dumps({**manifest, "files": [*manifest["files"], "cell-old.html"]}))
    (target / "cell-old.html").write_text("stale")
    write_report(results / "results", target, draws=0)
    assert not (target / "cell-old.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_no_results_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iqa-harness run"):
        write_report(tmp_path / "nothing", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_scores_that_do_not_belong_to_the_cell_are_refused(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results / "results", copy)
    for path in copy.glob("scores/bright/rated*/*/identity.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scorer": {"version": 2}}))
    with pytest.raises(StoreError, match="does not belong"):
        write_report(copy, tmp_path / "site")
    shutil.rmtree(copy)
    shutil.copytree(results / "results", copy)
    for path in copy.glob("scores/bright/rated*/*/part-*.parquet"):
        path.unlink()
    with pytest.raises(StoreError, match="0 stored scores"):
        write_report(copy, tmp_path / "site")


def test_the_command_prints_the_first_page_and_reports_errors(results: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness", "report", "--draws", "0", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = call("--results", str(results / "results"), "--output", str(tmp_path / "site"))
    assert made.returncode == 0, made.stderr
    assert Path(made.stdout.strip()) == tmp_path / "site" / "index.html"
    refused = call("--results", str(tmp_path / "nothing"), "--output", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "no results" in refused.stderr


# --- charts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-0.76, 0.908), (0.59, 0.82), (0.97, 0.99), (-0.2, 0.1)])
def test_the_axis_of_intervals_has_two_or_three_ticks(low: float, high: float) -> None:
    made = charts.whisker_axis([{"value": (low + high) / 2, "low": low, "high": high}])
    assert made is not None
    assert 2 <= len(made.ticks) <= 3


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-1, 1, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0, 120, ["0", "25", "50", "75", "100"]),
        (0, 1.2, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (3, 97, ["20", "40", "60", "80"]),
        (0.0101, 0.0199, ["0.012", "0.014", "0.016", "0.018"]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, labels: list[str]) -> None:
    made = charts.ticks(low, high)
    assert [label for _, label in made] == labels
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in made)


@pytest.mark.parametrize("length", [150, 390])
@pytest.mark.parametrize("lowest", [0.9, -0.05, -0.2, -0.36, -0.6, -1.0])
def test_labels_of_a_bar_chart_do_not_touch(length: float, lowest: float) -> None:
    groups = {str(i): {"figures": {"srcc": {"value": value}}, "n": 9} for i, value in enumerate((lowest, 0.5))}
    made = charts.bars(groups, "srcc", ranked=False, length=length)
    assert made is not None
    places = [(made.axis.at(value), 4 * len(label)) for value, label in made.axis.ticks]  # 8 units a character
    assert len(places) >= 3
    assert all(a + half <= b - other for (a, half), (b, other) in pairwise(places))


def test_axis_of_one_value_has_a_width() -> None:
    axis = charts.axis([5.0, 5.0], 0, 100)
    assert axis.low < 5 < axis.high
    assert axis.at(5) == 50


def test_scatter_draws_every_image_and_the_fitted_curve(results: Path) -> None:
    cell = cell_of(results, "rough", "rated")
    plot = charts.scatter(cell)
    assert plot is not None
    assert plot.drawn == plot.total == len(plot.points) == len(cell.rows)
    xs = [x for _, x, _ in plot.points]
    assert xs == sorted(xs)
    # Roughness is lower-better and its axis is not turned: the curve falls, so SVG's y grows.
    start, end = (float(point.split()[1]) for point in (plot.curve[1:].split("L")[0], plot.curve.split("L")[-1]))
    assert end > start


def test_inversions_find_the_wrong_step(results: Path) -> None:
    cell = cell_of(results, "bright", "rated")
    rows = cell.rows
    scores = -rows["level"].to_numpy(dtype=float)
    assert data.inversions(rows, scores) == []
    ladder = data.ladder_rows(rows)["dark", "photo2"]
    assert list(rows["level"].iloc[ladder]) == [0, 1, 2, 3]
    assert rows["distortion"].iloc[ladder[0]] == ""
    scores[ladder[3]] = 3.0
    (found,) = data.inversions(rows, scores)
    assert (found.milder, found.worse, found.gap) == (ladder[2], ladder[3], pytest.approx(5 / 6))


def test_a_ladder_starts_at_its_own_pristine_image_or_else_at_the_shared_one() -> None:
    rungs = [("a", 1), ("", 0), ("a", 2), ("a", 3), ("b", 3), ("b", 2), ("b", 1), ("b", 0)]
    rows = pd.DataFrame([{"reference": "photo", "distortion": kind, "level": level} for kind, level in rungs])
    found = {
        kind: list(rows.iloc[index].itertuples(index=False)) for (kind, _), index in data.ladder_rows(rows).items()
    }
    assert found["a"] == [("photo", "", 0), ("photo", "a", 1), ("photo", "a", 2), ("photo", "a", 3)]
    assert found["b"] == [("photo", "b", level) for level in range(4)]


def test_seen_datasets_are_marked_and_enter_no_mean(results: Path) -> None:
    cells = data.load_cells(Store(results / "results"))
    first = [cell for cell in cells if cell.dataset == "rated" and cell.measured]
    for cell in first:
        cell.content["scorer"] |= {"opinion_aware": True, "trained_on": []}
    first[0].content["scorer"]["trained_on"] = ["rated"]
    second = [renamed(cell, "other") for cell in first]
    (block,) = overview([*first, *second])["blocks"]
    rows = {row["scorer"]: row for row in block["rows"]}
    marked = rows[first[0].scorer]
    other, rated = marked["cells"]
    assert (rated["marks"], other["marks"]) == (["seen in training"], [])
    assert marked["means"][1]["value"] == pytest.approx(other["value"])
    unseen = rows[first[1].scorer]
    # One of the block has seen "rated", so that the means are over "other" alone.
    assert unseen["means"][1]["value"] == pytest.approx(unseen["cells"][0]["value"])
    template = environment().get_template("index.html.j2")
    assert "by images" in template.render(links=[], page="", lacking={}, **overview([*first, *second]))


def test_scorers_that_met_different_labels_are_told_apart(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "results", tmp_path / "results")
    store = Store(tmp_path / "results")
    first = next(cell for cell in store.cells() if cell["dataset"]["name"] == "rated" and cell["subsets"])
    first["dataset"]["labels_hash"] = "0" * 64
    name = first["scorer"]["name"]
    store.write_cell(store.cell_path(name, "rated"), first)
    write_report(tmp_path / "results", tmp_path / "site", draws=0)
    text = (tmp_path / "site" / "dataset-rated.html").read_text()
    assert "and so not with each other" in text
    assert f"because they were run with other labels than the rest: {name}." in text
    compared = data.contest((cell for cell in data.load_cells(store) if cell.dataset == "rated"), draws=20)
    assert compared is not None
    assert compared.other_labels == [name]
    assert len(compared.cells) == 2
    assert {names for matrix in compared.matrices for names in matrix.names} == {
        cell.scorer for cell in compared.cells
    }
    assert name not in {side for rival in compared.rivals for side in (rival.defender, rival.attacker)}


def test_only_a_figure_over_as_many_images_as_any_is_marked_as_best() -> None:
    def best(*cells: dict[str, Any]) -> list[bool]:
        return [row["cells"][0]["best"] for row in mark_best([{"cells": [cell]} for cell in cells])]

    assert best({"value": 0.9, "n": 5}, {"value": 0.5, "n": 8}, {"value": 0.4, "n": 8}) == [False, True, False]
    assert best({"value": 0.9, "n": 5}, {"value": 0.5, "n": 5}, {"value": None, "n": 8}) == [True, False, False]
    assert best({"value": 0.9}, {"value": 0.5}) == [True, False]


def test_the_figures_of_every_split_stand_in_a_table(tmp_path: Path) -> None:
    names = write_images(tmp_path / "parted", 12)
    rows = [{"file_name": n, "mos": i, "split": ("<test>", "train")[i % 2]} for i, n in enumerate(names)]
    write_metadata(tmp_path / "parted", rows)
    evaluate(fake_scorer(), open_dataset(str(tmp_path / "parted")), Store(tmp_path / "results"))
    write_report(tmp_path / "results", tmp_path / "site", draws=0)
    page = next((tmp_path / "site").glob("cell-*.html")).read_text()
    for name, count in (("all", 12), ("&lt;test&gt;", 6), ("train", 6)):
        assert f'<th scope="row" class="name">{name}</th><td>{count}</td>' in page


def test_every_image_that_some_scorer_lacks_is_counted(results: Path) -> None:
    bright, rough = (cell_of(results, name, "rated") for name in ("bright", "rough"))
    lacking = [replace(bright, rows=bright.rows[1:]), replace(rough, rows=rough.rows[:-2])]
    compared = data.contest(lacking, draws=0)
    assert compared is not None
    assert (len(compared.rows), compared.left_out) == (len(bright.rows) - 3, 3)


def renamed(cell: data.Cell, dataset: str) -> data.Cell:
    content = copy.deepcopy(dict(cell.content))
    content["dataset"]["name"] = dataset
    content["subsets"]["all"]["figures"]["srcc"]["value"] /= 2
    return data.Cell(cell.scorer, dataset, content, cell.rows)


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (None, ""), (float("nan"), "")]
)
def test_number(value: Any, text: str) -> None:
    assert number(value) == text


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end no console message above "info", no error and no request outside the folder."""
    problems: list[str] = []
    contexts = []

    def open_page(name: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith((site.as_uri(), "data:")) or problems.append(request.url),
        )
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        # Leaving a page whose pictures still load would abort their requests.
        page.goto((site / name).as_uri(), wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(
        f"{table} tbody tr", f"rows => rows.map(r => r.cells[{index}]?.dataset.value ?? '')"
    )


def test_sorting_by_click_and_by_keyboard_keeps_empty_cells_last(visit: Callable[..., Any]) -> None:
    page = visit("dataset-rated.html")
    header = page.locator("section:has(#scorers) th", has_text="SRCC").nth(1)
    table = "section:has(#scorers) table"
    index = header.evaluate("h => h.cellIndex")
    header.locator("button").click()
    values = column(page, table, index)
    assert header.get_attribute("aria-sort") == "descending"
    assert values[-1] == ""
    assert values[:-1] == sorted(values[:-1], key=float, reverse=True)
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    again = column(page, table, index)
    assert again[-1] == ""
    assert again[:-1] == values[:-1][::-1]


def test_hover_and_arrow_keys_show_the_picture(visit: Callable[..., Any]) -> None:
    page = visit("cell-bright--rated.html")
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator("svg.scatter circle").nth(3).hover(force=True)
    tip.locator("img").wait_for()
    assert tip.locator("img").evaluate("i => i.complete && i.naturalWidth > 0")
    page.locator("svg.scatter").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("circle.current").get_attribute("data-file") in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


@pytest.mark.parametrize("name", ["cell-bright--rated.html", "dataset-rated.html"])
def test_hover_and_a_key_show_the_map(visit: Callable[..., Any], name: str) -> None:
    page = visit(name)
    image = page.locator("img[data-map]").first
    plain, mapped = image.get_attribute("src"), image.get_attribute("data-map")
    assert plain.replace("/large/", "/maps/") == mapped
    image.hover()
    assert image.get_attribute("src") == mapped
    page.mouse.move(0, 0)
    assert image.get_attribute("src") == plain
    page.keyboard.press("m")
    page.wait_for_load_state("networkidle")
    assert image.evaluate("i => i.complete && i.naturalWidth > 0")
    assert image.get_attribute("src") == mapped


def test_a_hostile_file_name_is_shown_as_text(visit: Callable[..., Any]) -> None:
    page = visit("cell-bright--rated.html")
    files = page.eval_on_selector_all("svg.scatter circle", "all => all.map(c => c.dataset.file)")
    page.locator("svg.scatter").focus()
    for _ in range(files.index(f"{HOSTILE}.png") + 1):
        page.keyboard.press("ArrowRight")
    assert HOSTILE in page.locator("#tip").inner_text()
    assert page.locator("#tip b").count() == 0


def test_gmad_pairs_follow_the_choice_of_scorers(visit: Callable[..., Any]) -> None:
    page = visit("dataset-rated.html")
    page.select_option("#defender", "rough")
    page.select_option("#attacker", "bright")
    pairs = page.locator("#pairs .pair")
    assert pairs.count() == 3
    assert "bright prefers" in pairs.first.inner_text()
    assert page.locator("#pairs img").count() == 6
    assert re.search(r"Of 28 images, bright has the left one \d+ places? higher; rough ", pairs.first.inner_text())
    assert "rough" not in page.eval_on_selector_all("#attacker option", "all => all.map(o => o.value)")
    page.select_option("#attacker", f"red{HOSTILE}")
    assert HOSTILE in pairs.first.inner_text()


def test_significance_explains_itself_on_focus(visit: Callable[..., Any]) -> None:
    page = visit("dataset-rated.html")
    page.locator("table.matrix td[data-tip]").first.focus()
    assert "adjusted p" in page.locator("#tip").inner_text()


def test_significance_has_the_tests_that_apply_and_shows_the_chosen_one(visit: Callable[..., Any]) -> None:
    page = visit("dataset-single.html")
    tabs = page.locator(".tab")
    assert tabs.count() == 3
    assert [tabs.nth(i).is_visible() for i in range(3)] == [True, False, False]
    page.get_by_role("button", name="Williams' t").click()
    assert [tabs.nth(i).is_visible() for i in range(3)] == [False, True, False]
    assert page.get_by_role("button", name="Williams' t").get_attribute("aria-pressed") == "true"
    # Images share contents: one test applies, and there is nothing to choose. Four contents decide nothing.
    shared = visit("dataset-rated.html")
    assert shared.locator(".tab").count() == 1
    assert shared.locator(".tabs").count() == 0
    assert "4 contents: no test can decide" in shared.locator(".tab").inner_text()


def test_links_lead_through_the_pages(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    page.locator("nav a", has_text="ladder").click()
    page.locator("section:has(#scorers) a", has_text="bright").click()
    assert page.locator("h1").inner_text() == "bright on ladder"
    assert page.locator("svg.ladder").count() == 2
    page.locator("nav a", has_text="Versions").click()
    assert page.locator(".version").count() == 9
    assert page.locator("#absent").count() == 1


def test_theme_follows_the_system_and_the_button(visit: Callable[..., Any]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit("index.html", color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(background) != dark.evaluate(background)
    before = dark.evaluate(background)
    dark.locator("#theme").click()
    assert dark.evaluate(background) == light.evaluate(background)
    dark.reload()
    assert dark.evaluate(background) != before


@pytest.mark.parametrize("width", [340, 1200])
def test_no_page_is_wider_than_the_screen(visit: Callable[..., Any], site: Path, width: int) -> None:
    page = visit("index.html", viewport={"width": width, "height": 800})
    for name in sorted(path.name for path in site.glob("*.html")):
        # Leaving a page whose pictures still load would abort their requests.
        page.goto((site / name).as_uri(), wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_pages_read_without_javascript(visit: Callable[..., Any]) -> None:
    dataset = visit("dataset-rated.html", java_script_enabled=False)
    assert dataset.locator(".tab").is_visible()
    page = visit("cell-bright--rated.html", java_script_enabled=False)
    assert page.locator("svg.scatter circle").count() == 28
    assert not page.locator("#theme").is_visible()
