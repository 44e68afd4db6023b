"""The harness from Python: the same as the command line, with tables as data frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.leaderboard.table import label_note, table
from harness.report.comparisons import compare_all as _compare_all
from harness.report.data import Cell, contest, joined_rows, labels_of, load_cell
from harness.results.measure import NO_SCORE
from harness.results.store import Store, StoreError
from harness.run.progress import Silent
from harness.run.runner import RunRequest, run_all
from harness.scorers.kinds import Scorer

if TYPE_CHECKING:
    import pandas as pd

COMPARISON = (
    *("dataset", "figure", "n", "contents", "first", "second", "difference", "low", "high"),
    *("p", "p_williams", "p_pitman", "reason"),
)


def evaluate(
    scorers: str | Scorer | Sequence[str | Scorer],
    datasets: str | Sequence[str] = ("ladders",),
    *,
    output: str | os.PathLike[str] = "results",
    **options: Any,
) -> pd.DataFrame:
    """Score datasets, where scores are missing, and return the leaderboard.

    Args:
        scorers: Names as on the command line, or started scorers (:class:`harness.scorers.kinds.Scorer`).
        datasets: Names, folders or ``NAME=FOLDER``.
        output: Results folder.
        **options: Fields of :class:`harness.run.runner.RunRequest`, such as ``device`` or ``settings``.

    Returns:
        See :func:`harness.leaderboard.table.table`.

    Raises:
        QualiCLIPError: A dataset is invalid or the output cannot be written. A scorer that cannot start is a
            row with its reason.

    Examples:
        >>> import harness
        >>> frame = harness.evaluate(["entropy", "qualiclip-lite"], ["scored"], output="results")
        >>> print(frame[["scorer", "n", "srcc"]].round(2).to_string(index=False))
                scorer  n  srcc
        qualiclip-lite  8  0.86
               entropy  8 -0.19
    """
    request = RunRequest(
        scorers=(scorers,) if isinstance(scorers, str | Scorer) else tuple(scorers),
        datasets=(datasets,) if isinstance(datasets, str) else tuple(datasets),
        output=Path(output),
        **options,
    )
    return table(run_all(request, Silent()))


def compare(
    first: str,
    second: str,
    *,
    output: str | os.PathLike[str] = "results",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test two scorers against each other on every dataset that the store has for both.

    SRCC is compared if there are human scores, else the L-test: sign flips over contents, with an interval of the
    difference. If no two images share a content, Williams' t on ranks and Pitman's test on the residuals of the fit
    are given too. The p-values are those of single tests: with many scorers, adjust them
    (:func:`harness.statistics.holm`).

    Args:
        first: Name of a scorer.
        second: Name of another.
        output: Results folder.
        draws: Random sign patterns where there are more than 13 contents, at least.
        seed: Same seed, same result.

    Returns:
        One row per dataset with the columns ``COMPARISON``; a difference above 0 favours ``first``. Only
        images with both scores count (``n``). ``reason`` says why there is no test (different labels) or no possible
        decision (too few contents).

    Raises:
        StoreError: A scorer has no stored scores, or they cannot be read.

    Examples:
        >>> import harness
        >>> frame = harness.evaluate(["entropy", "qualiclip-lite"], ["scored"], output="results")
        >>> row = harness.compare("qualiclip-lite", "entropy", output="results").iloc[0]
        >>> row["figure"], int(row["n"]), f"{row['p']:.2f}"
        ('srcc', 8, '0.10')
    """
    import pandas as pd

    store = Store(output)
    stored = store.cells()
    cells = {name: _cells_of(store, stored, name) for name in (first, second)}
    shared = sorted(cells[first].keys() & cells[second].keys())
    rows = [_compare(cells[first][name], cells[second][name], draws, seed) for name in shared]
    return pd.DataFrame(rows, columns=list(COMPARISON))


def compare_all(*, output: str | os.PathLike[str] = "results", draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Test all scorers of every dataset against each other and store the outcome beside the results.

    Unlike in :func:`compare`, p-values are adjusted by Holm over the pairs of a dataset, and only images with scores
    of all scorers count. See :func:`harness.report.comparisons.compare_all`.

    Args:
        output: Results folder; ``comparisons.csv`` and ``comparisons/`` are written there.
        draws: Random sign patterns where there are more than 13 contents, at least.
        seed: Same seed, same result.

    Returns:
        One row for every test of two scorers.

    Raises:
        StoreError: Results cannot be read, or the folder cannot be written.

    Examples:
        >>> import harness
        >>> frame = harness.evaluate(["entropy", "qualiclip-lite"], ["scored"], output="results")
        >>> harness.compare_all(output="results")["test"].tolist()
        ['flip', 'williams', 'pitman']
    """
    return _compare_all(Store(output), draws=draws, seed=seed)


def load_scores(scorer: str, dataset: str, *, output: str | os.PathLike[str] = "results") -> pd.DataFrame:
    """Every stored score of a scorer on a dataset, with the labels, for your own statistics.

    Args:
        scorer: Name of a scorer.
        dataset: Name of a dataset.
        output: Results folder.

    Returns:
        One row per image: ``file_name``, ``score`` as the scorer gives it (NaN if it failed, with its ``error``),
        ``opinion``, ``std``, ``votes``, ``reference``, ``distortion``, ``level``, ``split``, ``image_hash``, ....
        ``frame.attrs`` has ``scorer_lower_better`` and ``opinion_lower_better``.

    Raises:
        StoreError: There are no such scores, or they or the labels cannot be read.

    Examples:
        >>> import harness
        >>> frame = harness.evaluate("entropy", "scored", output="results")
        >>> scores = harness.load_scores("entropy", "scored", output="results")
        >>> scores[["file_name", "opinion"]].head(1).to_dict("records")
        [{'file_name': '0.png', 'opinion': 9.0}]
    """
    store = Store(output)
    found = [cell for cell in store.cells() if cell["scorer"]["name"] == scorer and cell["subsets"]]
    contents = {cell["dataset"]["name"]: cell for cell in found}
    if dataset not in contents:
        known = f"; there are some on {', '.join(sorted(contents))}" if contents else ""
        raise StoreError(f"{store.root}: no stored scores of {scorer!r} on {dataset!r}{known}")
    content = contents[dataset]
    labels = labels_of(store, content)
    if isinstance(labels, str):
        raise StoreError(f"{store.root}: {scorer} on {dataset}: {labels}")
    rows = joined_rows(store, content, labels)
    rows.attrs = {
        "scorer_lower_better": content["scorer"]["lower_better"],
        "opinion_lower_better": (content["dataset"]["opinion"] or {}).get("lower_better"),
    }
    return rows


def _cells_of(store: Store, stored: Sequence[dict[str, Any]], name: str) -> dict[str, Cell]:
    own = [content for content in stored if content["scorer"]["name"] == name and content["subsets"]]
    if not own:
        raise StoreError(f"{store.root}: no stored scores of {name!r}")
    return {content["dataset"]["name"]: load_cell(store, content) for content in own}


def _compare(first: Cell, second: Cell, draws: int, seed: int) -> dict[str, Any]:
    if note := label_note(cell.content for cell in (first, second)):
        return {"dataset": first.dataset, "reason": note}
    lacking = [cell for cell in (first, second) if not cell.measured]
    if lacking:
        # A scorer that failed on every image has a cell without a reason of its own.
        reason = lacking[0].content.get("reason", NO_SCORE)
        return {"dataset": first.dataset, "reason": f"{lacking[0].scorer}: {reason}"}
    compared = contest([first, second], draws=draws, seed=seed)
    if compared is None or not compared.matrices:
        return {"dataset": first.dataset, "reason": "compared with itself"}
    matrices = {matrix.method: matrix for matrix in compared.matrices}
    flips = matrices["flip"]
    lacking_results = [f"{one.method}: {why}" for one in compared.matrices for why in one.reasons.values()]
    reasons = [flips.undecidable, *lacking_results]
    return {
        "dataset": first.dataset,
        "figure": compared.statistic,
        "n": len(compared.rows),
        "contents": flips.contents,
        "first": compared.values[first.scorer],
        "second": compared.values[second.scorer],
        "difference": flips.differences[0, 1],
        "low": flips.lows[0, 1],
        "high": flips.highs[0, 1],
        "p": flips.p_values[0, 1],
        **{f"p_{name}": matrices[name].p_values[0, 1] for name in ("williams", "pitman") if name in matrices},
        "reason": "; ".join(dict.fromkeys(reason for reason in reasons if reason)),
    }
