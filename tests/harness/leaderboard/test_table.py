"""Figures and tables: against SciPy, signed, with reasons where there is nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.leaderboard.render import render
from harness.leaderboard.table import COLUMNS, across_datasets, reported, table, timings, to_csv
from harness.results.measure import FIGURES, Directions, Settings, cell_figures, join_scores
from harness.run.engine import unavailable_cell

SETTINGS = Settings()


def rows(number: int = 40, **columns: Any) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    opinion = generator.normal(size=number)
    frame = {
        "file_name": [f"{i}.png" for i in range(number)],
        "opinion": opinion,
        "std": 1.0,
        "votes": 30.0,
        "reference": "",
        "distortion": "",
        "level": pd.array([pd.NA] * number, dtype="Int64"),
        "split": "",
        "image_hash": [str(i) for i in range(number)],
        "score": opinion + generator.normal(size=number),
        "error": "",
    }
    return pd.DataFrame({**frame, **columns})


def ladder_rows(quality: Any) -> pd.DataFrame:
    """Two photographs, two distortions, five levels and the photographs themselves; score = quality(level)."""
    records = [(photo, kind, level) for photo in "ab" for kind in ("blur", "noise") for level in range(1, 6)]
    records += [("a", "", 0), ("b", "", 0)]
    frame = rows(len(records), opinion=np.nan, std=np.nan)
    frame["reference"], frame["distortion"], frame["level"] = zip(*records, strict=True)
    return frame.astype({"level": "Int64"}).assign(score=[float(quality(*record)) for record in records])


def cell(frame: pd.DataFrame, name: str = "fake", dataset: str = "set", **options: Any) -> dict[str, Any]:
    trained_on = options.pop("trained_on", [])
    directions = Directions(options.pop("lower_better", False), options.pop("opinion_lower_better", False))
    return {
        "schema_version": 1,
        "status": "complete",
        "scorer": {
            "name": name,
            "opinion_aware": bool(trained_on),
            "trained_on": trained_on,
            "identity": {"precision": options.pop("precision", "fp32")},
        },
        "dataset": {
            "name": dataset,
            "version": "1",
            "labels_hash": options.pop("labels", "same"),
            "opinion": {"kind": "mos"},
            "images": len(frame),
            "seen_by": [],
        },
        "seconds": 1.5,
        "date": "2026-01-01T00:00:00",
        "device": ["CPU"],
        "versions": {"torch": "2"},
        "failures": [],
        **cell_figures(frame, directions, SETTINGS, **options),
    }


def values(frame: pd.DataFrame, subset: str = "all", **options: Any) -> dict[str, float | None]:
    figures = cell(frame, **options)["subsets"][subset]["figures"]
    return {name: figures[name]["value"] for name in FIGURES}


def test_correlations_are_scipys() -> None:
    frame = rows()
    found = values(frame)
    assert found["srcc"] == pytest.approx(stats.spearmanr(frame["score"], frame["opinion"]).statistic)
    assert found["krcc"] == pytest.approx(stats.kendalltau(frame["score"], frame["opinion"]).statistic)
    assert found["plcc_raw"] == pytest.approx(stats.pearsonr(frame["score"], frame["opinion"]).statistic)
    assert found["d_test"] is None


def test_each_direction_turns_the_sign_once() -> None:
    frame = rows()
    plain = values(frame)
    for options in ({"lower_better": True}, {"opinion_lower_better": True}):
        turned = values(frame, **options)
        for name in ("srcc", "krcc", "plcc_raw", "plcc_fit"):
            assert turned[name] == pytest.approx(-plain[name], abs=1e-4)
    both = values(frame, lower_better=True, opinion_lower_better=True)
    assert both == pytest.approx(plain, abs=1e-4, nan_ok=True)


def test_intervals_hold_their_value() -> None:
    figures = cell(rows())["subsets"]["all"]["figures"]
    for name in ("srcc", "krcc", "plcc_raw"):
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]


def test_failed_images_take_no_part() -> None:
    frame = rows()
    frame.loc[:4, ["score", "error"]] = [np.nan, "broken"]
    found = cell(frame)["subsets"]["all"]
    assert (found["n"], found["n_failed"]) == (35, 5)
    assert found["figures"]["srcc"]["value"] == pytest.approx(values(rows().iloc[5:])["srcc"])


def test_an_image_without_a_stored_score_is_a_failure() -> None:
    frame = rows()
    scores = frame[["image_hash", "score", "error"]].iloc[2:]
    joined = join_scores(frame.drop(columns=["score", "error"]), scores)
    assert joined["error"].tolist()[:3] == ["not scored", "not scored", ""]


def test_subsets_distortions_and_levels_have_their_own_figures() -> None:
    frame = rows(split=["test"] * 10 + ["train"] * 30)
    found = cell(frame)["subsets"]
    assert {name: part["n"] for name, part in found.items()} == {"all": 40, "test": 10, "train": 30}
    ladders = cell(ladder_rows(lambda photo, kind, level: -level))
    assert {name: part["n"] for name, part in ladders["distortions"].items()} == {"blur": 12, "noise": 12}
    # Nobody rated the ladders: a level is set against the pristine images. Opinions are compared within a level.
    assert {name: part["n"] for name, part in ladders["levels"].items()} == dict.fromkeys("12345", 6)
    assert all(part["figures"]["d_test"]["value"] == 1 for part in ladders["levels"].values())
    # The pristine image may stand in a ladder of its own, under the name of its distortion.
    named = ladder_rows(lambda photo, kind, level: -level)
    pristine = named[named["level"] == 0]
    apart = pd.concat([named[named["level"] > 0], *(pristine.assign(distortion=kind) for kind in ("blur", "noise"))])
    apart = apart.reset_index(drop=True).assign(image_hash=lambda rows: rows.index.astype(str))
    found = cell(apart)
    assert {name: part["n"] for name, part in found["distortions"].items()} == {"blur": 12, "noise": 12}
    assert {name: part["n"] for name, part in found["levels"].items()} == dict.fromkeys("12345", 8)
    assert all(part["figures"]["d_test"]["value"] == 1 for part in found["levels"].values())
    rated = cell(ladder_rows(lambda photo, kind, level: -level).assign(opinion=range(22)))
    assert {name: part["n"] for name, part in rated["levels"].items()} == dict.fromkeys("12345", 4)


def test_ladder_tests_of_a_perfect_a_blind_and_a_reversed_scorer() -> None:
    perfect = values(ladder_rows(lambda photo, kind, level: -level))
    assert (perfect["d_test"], perfect["l_test"]) == pytest.approx((1.0, 1.0))
    assert perfect["srcc"] is None
    blind = cell(ladder_rows(lambda photo, kind, level: -level if kind == "blur" else 0))
    assert blind["subsets"]["all"]["figures"]["l_test"]["value"] == pytest.approx(0.5)
    reversed_ = values(ladder_rows(lambda photo, kind, level: level))
    assert (reversed_["d_test"], reversed_["l_test"]) == pytest.approx((0.5, -1.0))
    assert values(ladder_rows(lambda photo, kind, level: level), lower_better=True)["l_test"] == pytest.approx(1.0)


def test_types_whose_level_is_no_severity_take_no_part_in_tests_of_severity() -> None:
    frame = ladder_rows(lambda photo, kind, level: level if kind == "noise" else -level)
    opinion = [-row.level if row.distortion == "blur" else 0.1 * row.Index for row in frame.itertuples()]
    rated = frame.assign(opinion=opinion)
    labels = rated.drop(columns=["score", "error"])
    scores = rated[["image_hash", "score", "error"]]
    plain, declared = (
        cell(join_scores(labels, scores, unordered))["subsets"]["all"] for unordered in ((), ("noise",))
    )
    assert plain["figures"]["l_test"]["value"] == pytest.approx(0)
    assert declared["figures"]["l_test"]["value"] == declared["figures"]["d_test"]["value"] == pytest.approx(1)
    # What the opinions themselves reach.
    assert plain["ceiling"]["l_test"] == pytest.approx(0)
    assert declared["ceiling"]["l_test"] == pytest.approx(1)
    assert (
        "stand for severity"
        in cell(join_scores(labels, scores, ("noise", "blur")))["subsets"]["all"]["figures"]["l_test"]["reason"]
    )


def test_a_ladder_with_failures_counts_as_long_as_three_levels_are_left() -> None:
    frame = ladder_rows(lambda photo, kind, level: -level)
    frame.loc[(frame["reference"] == "a") & (frame["level"].isin([1, 2])), "error"] = "broken"
    assert values(frame)["l_test"] == pytest.approx(1.0)
    frame.loc[(frame["level"].isin([1, 2, 3])), "error"] = "broken"
    assert values(frame)["l_test"] is None


def test_p_test_asks_for_pairs_that_all_full_reference_metrics_separate() -> None:
    frame = ladder_rows(lambda photo, kind, level: -level)
    steps = frame["level"].astype(float).where(frame["level"] > 0)
    frame["full_reference_psnr"], frame["full_reference_ssim"] = 60 - 7 * steps, 1 - 0.2 * steps
    frame["full_reference_gmsd"] = -0.05 * steps
    found = cell(frame)["subsets"]["all"]["figures"]["p_test"]
    assert (found["value"], found["pairs"]) == (1.0, 4 * 4 * 10)
    assert found["no_interval"] == "2 contents, 3 needed for an interval"
    frame["full_reference_gmsd"] = 0.05 * steps
    assert cell(frame)["subsets"]["all"]["figures"]["p_test"]["value"] is None
    assert "full-reference" in cell(rows())["subsets"]["all"]["figures"]["p_test"]["reason"]


def test_krasula_needs_standard_errors() -> None:
    assert 0.5 < cell(rows())["subsets"]["all"]["krasula"]["correct"]["value"] <= 1
    assert "votes" in cell(rows(votes=np.nan))["subsets"]["all"]["krasula"]["reason"]


def test_ratio_splits_are_summed_up() -> None:
    asked = cell(rows(), ratio=True)
    found = asked["ratio_splits"]
    assert found["srcc"]["splits"] == 10
    assert -1 < found["srcc"]["median"] < 1
    (row,) = table([asked]).to_dict("records")
    assert (row["srcc_splits_median"], row["srcc_splits_std"]) == (found["srcc"]["median"], found["srcc"]["std"])
    assert f"{found['srcc']['median']:.3f} ± {found['srcc']['std']:.3f}" in render([asked])
    assert "of 10 splits" not in render([cell(rows())])


def test_a_single_content_cannot_be_split() -> None:
    few = cell(rows(reference=["one"] * 40), ratio=True)["ratio_splits"]
    assert "1 contents cannot be taken out" in few["reason"]


def test_timings_are_a_table_of_their_own() -> None:
    missing = unavailable_cell("niqe", "set", "no weights")
    (row,) = timings([cell(rows(), "good"), missing]).to_dict("records")
    assert (row["scorer"], row["seconds"], row["images_per_second"]) == ("good", 1.5, pytest.approx(40 / 1.5))
    assert "seconds" not in COLUMNS


def test_csv_has_plain_numbers_and_empty_cells() -> None:
    constant = cell(rows(score=1.0), "constant")
    missing = unavailable_cell("niqe", "set", "no weights")
    text = to_csv(table([cell(rows(), "good"), constant, missing]))
    read = pd.read_csv(io.StringIO(text))
    assert tuple(read.columns) == COLUMNS
    assert read["scorer"].tolist() == ["good", "constant", "niqe"]
    assert read["srcc"].notna().tolist() == [True, False, False]
    assert read["n"].tolist()[0] == 40
    assert read[["srcc", "krcc"]].dtypes.tolist() == [np.dtype(float)] * 2
    assert "*" not in text


def test_markdown_has_the_best_in_bold_and_the_reasons_below() -> None:
    good, bad = cell(rows(), "good"), cell(rows(), "bad", lower_better=True)
    missing = unavailable_cell("niqe", "set", "no weights:\n  https://example.org/a|b")
    text = render([bad, good, missing])
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "**" in lines["good"]
    assert "**" not in lines["bad"].split("|")[4]
    assert set(lines["niqe"].replace("niqe", "")) == {"|", " "}
    assert "- niqe: no weights: https://example.org/a\\|b" in text
    assert "d_test" not in text
    assert "Measured 2026-01-01 on CPU. Versions: torch 2." in text


def test_a_reason_stands_below_where_a_figure_is_undefined() -> None:
    text = render([cell(rows(), "good"), cell(rows(score=1.0), "constant")])
    assert "- constant: all scores are 1" in text
    constant_on_ladders = cell(ladder_rows(lambda photo, kind, level: 1.0).assign(opinion=range(22)), "constant")
    other = cell(ladder_rows(lambda photo, kind, level: -level).assign(opinion=range(22)), "good")
    text = render([constant_on_ladders, other])
    assert "- constant srcc, constant krcc" in text
    assert "constant l_test: all scores of every ladder are the same" in text


def test_lowest_rmse_is_best() -> None:
    generator = np.random.default_rng(1)
    noisy = rows().assign(score=generator.normal(size=40))
    lines = render([cell(rows(), "good"), cell(noisy, "noisy")]).splitlines()
    header = next(line for line in lines if line.startswith("| scorer"))
    column = [name.strip() for name in header.split("|")].index("rmse")
    good = next(line for line in lines if line.startswith("| good"))
    assert "**" in good.split("|")[column]


def test_a_scorer_that_failed_on_some_images_is_not_the_best() -> None:
    easy = rows(score=rows()["opinion"])
    easy.loc[:9, "error"] = "too hard"
    cells = [cell(rows(), "good"), cell(easy, "easy")]
    lines = {line.split("|")[1].strip(): line for line in render(cells).splitlines() if line.startswith("|")}
    assert "**" in lines["good"]
    assert "**" not in lines["easy"]
    # An image that nobody can read leaves them rivals.
    alike = [cell(easy.assign(score=rows()["score"]), "good"), cell(easy, "easy")]
    lines = {line.split("|")[1].strip(): line for line in render(alike).splitlines() if line.startswith("|")}
    assert "**" in lines["easy"]


def test_what_a_scorer_was_trained_on_is_marked_and_left_out_of_its_mean() -> None:
    cells = [
        cell(rows(), "blind", "one"),
        cell(rows(), "blind", "two"),
        cell(rows(score=rows()["opinion"]), "trained", "one", trained_on=["one"]),
        cell(rows(), "trained", "two", trained_on=["one"]),
        cell(rows(), "partial", "one"),
    ]
    found = across_datasets(cells).set_index("scorer")
    value = values(rows())["srcc"]
    assert found.loc["blind", "mean"] == pytest.approx(value)
    # Alone in its block: the set that it has seen is nobody's.
    assert found.loc["trained", "mean"] == pytest.approx(value)
    assert found.loc["trained", ["seen", "sets"]].tolist() == ["one", "two"]
    assert found.loc["blind", "wins"] == 0.5
    assert pd.isna(found.loc["partial", "mean"])
    assert found.loc["partial", "reason"] == "no complete value on two"
    text = render(cells)
    assert "trained†" in text
    assert text.index("### Opinion-unaware") < text.index("### Opinion-aware")
    assert "## All datasets with human scores" in text


def test_a_scorer_of_two_versions_has_no_mean() -> None:
    cells = [cell(rows(), "mixed", "one"), cell(rows(), "mixed", "two", precision="bf16")]
    cells += [cell(rows(), "same", name) for name in ("one", "two")]
    found = across_datasets(cells).set_index("scorer")
    assert pd.isna(found.loc["mixed", ["mean", "weighted", "wins"]].astype(float)).all()
    assert found.loc["mixed", "reason"] == "scored by different versions (precision); run it again"
    assert found.loc["same", "mean"] == pytest.approx(values(rows())["srcc"])


def test_scorers_that_met_different_labels_are_told_apart() -> None:
    cells = [cell(rows(), "old", "one", labels="before"), cell(rows(), "new", "one"), cell(rows(), "newer", "one")]
    assert "not with each other: old; new, newer. Run them again." in render(cells)
    assert "not with each other" not in render(cells[1:])
    found = across_datasets([*cells[:2], *(cell(rows(), name, "two") for name in ("old", "new"))]).set_index("scorer")
    assert set(found["reason"]) == {"different labels on one; run all scorers again"}
    assert found["mean"].isna().all()


def test_a_cell_with_failures_enters_no_mean() -> None:
    broken = {**cell(rows(), "broken", "two"), "status": "failed images"}
    found = across_datasets([cell(rows(), "broken", "one"), broken]).set_index("scorer")
    assert pd.isna(found.loc["broken", "mean"])


def test_weighted_means_follow_the_number_of_images() -> None:
    cells = [cell(rows(40), "a", "one"), cell(rows(10), "a", "two")]
    first, second = (values(rows(number))["srcc"] for number in (40, 10))
    found = across_datasets(cells).iloc[0]
    assert found["mean"] == pytest.approx((first + second) / 2)
    assert found["weighted"] == pytest.approx((40 * first + 10 * second) / 50)


def test_formats_hold_the_same_numbers_and_escape_names() -> None:
    name = r"a_b&<script>$x$|\y"
    cells = [cell(rows(), name), cell(rows(), "plain")]
    value = f"{values(rows())['srcc']:.4f}"
    latex, page, markdown = (render(cells, form) for form in ("latex", "html", "markdown"))
    assert r"\toprule" in latex
    assert r"a\_b\&\textless{}script\textgreater{}\$x\$\textbar{}\textbackslash{}y" in latex
    assert "a_b&amp;&lt;script&gt;" in page
    assert "<script>" not in page
    assert f"<b>{value}</b>" in page
    assert f"\\textbf{{{value}}}" in latex
    assert f"**{value}**" in markdown
    assert r"\|" in markdown
    assert render(cells, "csv") == to_csv(table(cells))


@pytest.mark.parametrize("form", ["markdown", "latex", "html", "csv"])
def test_names_forge_no_line_of_a_table(form: str) -> None:
    hostile = "x\n\n# Forged \x1b[31m\r[1pt]"
    failed = {"failures": [{"file_name": hostile, "error": hostile}], "status": "failed images"}
    plain = render([cell(rows(), "plain"), cell(rows(), "other", "second") | failed], form).splitlines()
    cells = [cell(rows(), hostile, hostile), cell(rows(), "other", "second") | failed]
    lines = render(cells, form).splitlines()
    assert len(lines) == len(plain)
    assert all(line.isprintable() for line in lines)


def test_reported_numbers_stand_beside_ours_with_a_source() -> None:
    text = render([cell(rows(), "niqe", "clive")], with_reported=True)
    ours = values(rows())["srcc"]
    assert f"{ours:.4f} / 0.4505" in text
    assert all(row["source"] and float(row["srcc"]) <= 1 for row in reported().values())


def test_every_number_that_pyiqa_publishes_is_there(shared_dir: Path) -> None:
    with (shared_dir / "tables/pyiqa_nr_benchmark.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sets = {"livec": "clive", "flive": "flive-official"}
    known = {(scorer, dataset): row for (scorer, dataset, _), row in reported().items() if row["citable"] == "yes"}
    published = {
        (row["Metric name"].removesuffix("-koniq"), sets.get(name := column.split("(")[0], name)): numbers.split("/")
        for row in rows
        for column, numbers in row.items()
        if "/" in column and (numbers or "").count("/") == 2
    }
    assert {key: [float(row[name]) for name in ("plcc_raw", "srcc", "krcc")] for key, row in known.items()} == {
        key: [float(number) for number in numbers] for key, numbers in published.items()
    }


def test_reported_names_exist() -> None:
    from harness.data.spec import shipped_specs
    from harness.scorers.names import known_scorers

    assert {scorer for scorer, _, _ in reported()} <= set(known_scorers())
    for _, dataset, subset in reported():
        assert subset == "all" or shipped_specs()[dataset].columns.split, dataset


def test_a_figure_without_a_citable_source_is_marked() -> None:
    assert {row["citable"] for row in reported().values()} == {"yes", "no"}
    text = render([cell(rows(), "qualiclip", "clive")], with_reported=True)
    assert "/ 0.757 (no citable source)" in text
