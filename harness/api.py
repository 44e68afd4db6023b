"""The harness from Python: the same as the command line, with tables as data frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import statistics as st
from harness.leaderboard.table import label_note, table
from harness.report.data import Cell, ladders_of, load_cell
from harness.results.measure import NO_SCORE
from harness.results.store import Store, StoreError
from harness.run.progress import Silent
from harness.run.runner import RunRequest, run_all
from harness.scorers.kinds import Scorer
from harness.statistics.significance import no_outcome

if TYPE_CHECKING:
    import pandas as pd

    from harness.statistics.fitting import Form

COMPARISON = (
    *("dataset", "figure", "n", "first", "second", "difference", "low", "high"),
    *("p_bootstrap", "p_williams", "p_f", "reason"),
)


def evaluate(
    scorers: str | Scorer | Sequence[str | Scorer],
    datasets: str | Sequence[str] = ("ladders",),
    *,
    output: str | os.PathLike[str] = "results",
    **options: Any,
) -> pd.DataFrame:
    """Score datasets, as far as not done before, and return the leaderboard.

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

    On human scores SRCC is compared: paired bootstrap clustered by reference content, Williams' t on ranks,
    F-test on the residuals of the fit. Without them the L-test, by the paired bootstrap. The p-values are
    those of single tests: with many scorers, adjust them (:func:`harness.statistics.holm`).

    Args:
        first: Name of a scorer.
        second: Name of another.
        output: Results folder.
        draws: Bootstrap resamples.
        seed: Same seed, same result.

    Returns:
        One row per dataset with the columns ``COMPARISON``; a difference above 0 favours ``first``. Only
        images that both have scored count (``n``). Scorers that met different labels are not tested: the row
        has the reason.

    Raises:
        StoreError: A scorer has no stored scores, or they cannot be read.
    """
    import pandas as pd

    store = Store(output)
    stored = store.cells()
    cells = {name: _cells_of(store, stored, name) for name in (first, second)}
    shared = sorted(cells[first].keys() & cells[second].keys())
    rows = [_compare(cells[first][name], cells[second][name], draws, seed) for name in shared]
    return pd.DataFrame(rows, columns=list(COMPARISON))


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
    places = [{name: place for place, name in enumerate(cell.rows["file_name"])} for cell in (first, second)]
    common = sorted(places[0].keys() & places[1].keys())
    order = [[known[name] for name in common] for known in places]
    a, b = (cell.scores[chosen] for cell, chosen in zip((first, second), order, strict=True))
    rows = first.rows.iloc[order[0]].reset_index(drop=True)
    result: dict[str, Any] = {"dataset": first.dataset, "figure": first.main_figure, "n": len(common)}
    if first.has_opinions:
        form = first.content["settings"]["form"]
        return result | _by_opinions(a, b, first.opinions[order[0]], rows, draws, seed, form)
    return result | _by_ladders(a, b, rows, draws, seed)


def _by_opinions(
    a: Any, b: Any, opinions: Any, rows: pd.DataFrame, draws: int, seed: int, form: Form
) -> dict[str, Any]:
    contents = rows["reference"].to_numpy(dtype=str)
    clusters = contents if (contents != "").all() else None
    paired = st.paired_bootstrap(a, b, opinions, clusters=clusters, draws=draws, seed=seed)
    fits = [st.fit_logistic(form, scores, opinions) for scores in (a, b)]
    usable = all(not fit.reason and fit.rising for fit in fits)
    residuals = [fit.apply(scores) - opinions for fit, scores in zip(fits, (a, b), strict=True)] if usable else []
    williams = st.williams_test(a, b, opinions)
    undefined = no_outcome("the fit of a scorer is undefined or falls")
    variances = st.f_test(*residuals, parameters=len(fits[0].parameters)) if usable else undefined
    reasons = {"bootstrap": paired.reason, "Williams": williams.reason, "F": variances.reason}
    return {
        "first": st.srcc(a, opinions).value,
        "second": st.srcc(b, opinions).value,
        **_paired(paired),
        "p_williams": williams.p_value,
        "p_f": variances.p_value,
        "reason": "; ".join(f"{test}: {reason}" for test, reason in reasons.items() if reason),
    }


def _by_ladders(a: Any, b: Any, rows: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    one, other = ladders_of(rows, a), ladders_of(rows, b)
    if one is None or other is None:
        return {"reason": "no ladder of at least three levels"}
    paired = st.paired_mean(one.credited, other.credited, clusters=one.contents, draws=draws, seed=seed)
    return {
        "first": float(one.credited.mean()),
        "second": float(other.credited.mean()),
        **_paired(paired),
        "reason": paired.reason or "Williams, F: need human scores",
    }


def _paired(paired: st.PairedBootstrap) -> dict[str, Any]:
    return {
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "p_bootstrap": paired.p_value,
    }
