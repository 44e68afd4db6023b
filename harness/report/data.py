"""Data of the report, from stored results only: cells with their images, scores and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness import statistics as st
from harness.leaderboard import table as leaderboard
from harness.results.measure import Directions, images_of, join_scores
from harness.results.store import ScoreKey, Store, StoreError, slug
from harness.statistics.registry import whole_ladders
from qualiclip_plugin.utils.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

GMAD_LEVELS = 3
NO_LABELS = "the labels are not in this results folder; a run on the dataset writes them again"
OTHER_LABELS = "its figures are of other labels, which a later run on the dataset replaced; run it again"
LabelReader = Callable[[str], "tuple[pd.DataFrame, str]"]
SHOWN = 12  # misjudged images or inversions on a page


@dataclass(frozen=True)
class Cell:
    """One scorer on one dataset.

    Attributes:
        rows: Labels and scores of the images that have a score, in the dataset's order.
    """

    scorer: str
    dataset: str
    content: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def measured(self) -> bool:
        """Whether any image has a score; not so where the scorer could not start."""
        return len(self.rows) > 0

    @property
    def has_figures(self) -> bool:
        """Whether figures are stored; published results may have them without the labels that ``rows`` need."""
        return bool(self.content["subsets"])

    @property
    def outdated(self) -> bool:
        """Whether a later run on the dataset replaced the labels of its figures."""
        return self.content.get("reason") == OTHER_LABELS

    @property
    def page(self) -> str:
        """File name of its page."""
        return f"cell-{slug(self.scorer)}--{slug(self.dataset)}.html"

    @property
    def complete(self) -> bool:
        """Whether every image of the declared dataset has a score."""
        return bool(self.content["status"] == "complete")

    @property
    def seen(self) -> bool | None:
        """Whether the scorer was trained on opinions of this dataset; none if that is not known."""
        return leaderboard.seen(self.content)

    @property
    def chosen_here(self) -> bool:
        """Whether opinions of this dataset chose between variants of the scorer."""
        return leaderboard.chosen_here(self.content)

    @property
    def main_figure(self) -> str:
        """The figure that the cell is ranked by: SRCC, or the L-test if there are no opinions."""
        return "srcc" if self.has_opinions else "l_test"

    @property
    def has_opinions(self) -> bool:
        """Whether people rated the images."""
        return bool(self.content["dataset"].get("opinion"))

    def figure(self, name: str) -> Mapping[str, Any]:
        """Value, interval and reason of a figure; empty if the scorer could not start."""
        group = self.content["subsets"].get("all")
        return group["figures"].get(name, {}) if group else {}

    @property
    def scores(self) -> Floats:
        """Scores turned so that higher is better, (N,)."""
        down = self.directions.scorer_lower_better
        return st.oriented(self.rows["score"].to_numpy(dtype=float), lower_better=down)

    @property
    def opinions(self) -> Floats:
        """Opinions turned so that higher is better, (N,); NaN if there are none."""
        down = self.directions.opinion_lower_better
        return st.oriented(self.rows["opinion"].to_numpy(dtype=float), lower_better=down)

    @property
    def directions(self) -> Directions:
        """Which of scores and opinions run downwards."""
        opinion = self.content["dataset"]["opinion"] or {}
        return Directions(bool(self.content["scorer"]["lower_better"]), bool(opinion.get("lower_better")))

    @property
    def fit(self) -> st.LogisticFit | None:
        """The stored fit to the opinions."""
        stored = (self.content["subsets"].get("all") or {}).get("fit")
        # A number that was not finite is stored as null.
        if not stored or None in (*stored["parameters"], *stored.values()):
            return None
        return st.LogisticFit(**{**stored, "parameters": tuple(stored["parameters"])})


def load_cells(store: Store) -> list[Cell]:
    """All stored cells with their images.

    Raises:
        StoreError: A cell, its scores or its labels cannot be read, or do not belong together.
    """
    read = cache(store.labels)
    return [load_cell(store, content, read) for content in store.cells()]


def load_cell(store: Store, content: Mapping[str, Any], read: LabelReader | None = None) -> Cell:
    """One cell with its images; see :func:`load_cells`. ``read`` stands for :meth:`Store.labels`."""
    import pandas as pd

    scorer, dataset = content["scorer"]["name"], content["dataset"]["name"]
    if not content["subsets"]:
        return Cell(scorer, dataset, content, pd.DataFrame())
    labels = labels_of(store, content, read)
    if isinstance(labels, str):
        return Cell(scorer, dataset, {**content, "reason": labels}, pd.DataFrame())
    joined = joined_rows(store, content, labels)
    scored = joined[joined["error"] == ""].reset_index(drop=True)
    counted = content["subsets"]["all"]["n"]
    if len(scored) != counted:
        raise StoreError(
            f"{scorer} on {dataset}: {len(scored)} stored scores for the labels, the cell counted {counted}; "
            "run the cell again"
        )
    return Cell(scorer, dataset, content, scored)


def labels_of(store: Store, content: Mapping[str, Any], read: LabelReader | None = None) -> pd.DataFrame | str:
    """The labels that the figures of a measured cell were made from, or why they are not available."""
    dataset = content["dataset"]
    key = f"{dataset['name']}@{dataset['version']}"
    if not store.labels_path(key).exists():
        # Labels of datasets that may not be passed on are left out where results are published.
        return NO_LABELS
    labels, labels_hash = (read or store.labels)(key)
    return labels if labels_hash == dataset["labels_hash"] else OTHER_LABELS


def joined_rows(store: Store, content: Mapping[str, Any], labels: pd.DataFrame) -> pd.DataFrame:
    """Labels of a dataset with the stored scores of a measured cell."""
    scorer, dataset = content["scorer"], content["dataset"]
    key = stored_key(store, scorer["name"], f"{dataset['name']}@{dataset['version']}", scorer["fingerprint"])
    return join_scores(labels, store.scores(key), dataset.get("unordered", ()))


def stored_key(store: Store, scorer: str, dataset: str, fingerprint: str) -> ScoreKey:
    """The key that scores were stored under, from the identity kept beside them.

    Raises:
        StoreError: The identity is missing or does not give the fingerprint.
    """
    key = ScoreKey(scorer, dataset, store.identity(scorer, dataset, fingerprint))
    if key.fingerprint != fingerprint:
        raise StoreError(f"{store.root}: the stored identity does not belong to the scores of {scorer} on {dataset}")
    return key


@dataclass(frozen=True)
class Rival:
    """Pairs of images on which a defender and an attacker disagree."""

    defender: str
    attacker: str
    pairs: list[st.GmadPair]


@dataclass(frozen=True)
class Contest:
    """The scorers of one dataset with the same labels, against each other, on the images that all of them scored.

    Attributes:
        rows: Labels of the common images, (N,).
        matrices: Significance, one for each test that applies; none for fewer than two scorers.
        rivals: gMAD pairs for every defender and attacker, as indices into ``rows``.
        left_out: Images that some scorer lacks.
        other_labels: Scorers with figures that are not compared, as they met other labels.
        values: Scorer to the statistic on the common images; NaN if it has none.
        images: How many images all of them have scored.
        stored: Whether the tests were made elsewhere, with labels that are not here; then ``rows`` are empty.
    """

    dataset: str
    cells: list[Cell]
    rows: pd.DataFrame
    matrices: list[st.SignificanceMatrix]
    rivals: list[Rival] = field(default_factory=list)
    left_out: int = 0
    statistic: str = "srcc"
    other_labels: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    images: int = 0
    stored: bool = False


def contest(cells: Iterable[Cell], *, draws: int = 2000, seed: int = 0) -> Contest | None:
    """Compare the scorers of one dataset on their common images; none if no scorer has scores.

    Where they met different labels, the largest group with the same ones and stored scores is compared, the first of
    equal ones.

    Args:
        draws: Random sign patterns, at least; 0 leaves the matrices out.
    """
    import pandas as pd

    cells = list(cells)
    having_scores = [cell for cell in cells if cell.measured]
    if not having_scores:
        return None
    groups = leaderboard.label_groups(cell.content for cell in cells)
    scored = {cell.scorer for cell in having_scores}
    alike = max(groups, key=lambda group: len(scored.intersection(group)))
    measured = [cell for cell in having_scores if cell.scorer in alike]
    others = [name for group in groups if group is not alike for name in group]
    names = [pd.Index(cell.rows["file_name"]) for cell in measured]
    common = reduce(lambda some, others: some.intersection(others, sort=False), names).sort_values()
    places = [own.get_indexer(common) for own in names]
    rows = measured[0].rows.iloc[places[0]].reset_index(drop=True)
    columns = {cell.scorer: cell.scores[own] for cell, own in zip(measured, places, strict=True)}
    form = measured[0].content["settings"]["form"]
    known = images_of(rows, measured[0].directions, form)
    # A fit is of all images of its cell, and all are compared by one curve.
    fits = {
        cell.scorer: cell.fit
        for cell in measured
        if cell.fit and cell.fit.form == form and len(cell.rows) == len(common)
    }
    matrices = _matrices(measured[0], known, columns, draws, seed, fits) if draws and len(columns) > 1 else []
    statistic = measured[0].main_figure
    figures = {name: st.measure(statistic, own, known).value for name, own in columns.items()}
    rivals = [
        Rival(defender, attacker, st.gmad_pairs(columns[defender], columns[attacker], levels=GMAD_LEVELS))
        for defender in columns
        for attacker in columns
        if defender != attacker
    ]
    left_out = len(reduce(lambda some, others: some.union(others, sort=False), names)) - len(common)
    return Contest(
        measured[0].dataset, measured, rows, matrices, rivals, left_out, statistic, others, figures, len(common)
    )


def _matrices(
    cell: Cell,
    images: st.Images,
    columns: Mapping[str, Floats],
    draws: int,
    seed: int,
    fits: Mapping[str, st.LogisticFit],
) -> list[st.SignificanceMatrix]:
    # The other tests compare scores with opinions, and take images for independent.
    methods = st.METHODS if cell.has_opinions and images.independent else st.METHODS[:1]
    return [
        st.significance_matrix(columns, images, cell.main_figure, method=method, draws=draws, seed=seed, fits=fits)
        for method in methods
    ]


@dataclass(frozen=True)
class Inversion:
    """Two steps of one ladder in the wrong order.

    Attributes:
        milder: Row of the milder image, which got the lower score.
        worse: Row of the more distorted image, which got the higher score.
        gap: Difference of their scores as a share of the scorer's range on the dataset, in (0, 1].
    """

    milder: int
    worse: int
    gap: float


def inversions(rows: pd.DataFrame, scores: Floats) -> list[Inversion]:
    """The ladder steps that a scorer gets most wrong: at most one per ladder, widest first.

    Args:
        rows: Labels, (N,).
        scores: Scores, higher is better, (N,).
    """
    spread = float(np.ptp(scores)) if len(scores) else 0.0
    if not spread:
        return []
    found = []
    for indices in ladder_rows(rows).values():
        ladder = scores[indices]
        # Entry [i, j]: how far the later step j lies above the earlier step i.
        rise = np.triu(ladder[None, :] - ladder[:, None], k=1)
        i, j = np.unravel_index(int(np.argmax(rise)), rise.shape)
        if rise[i, j] > 0:
            found.append(Inversion(int(indices[i]), int(indices[j]), float(rise[i, j]) / spread))
    return sorted(found, key=lambda inversion: -inversion.gap)[:SHOWN]


def ladder_rows(rows: pd.DataFrame) -> dict[tuple[str, str], NDArray[np.intp]]:
    """Distortion and content to the row numbers of the ladder, mild to severe, its pristine image first."""
    levels = rows["level"].to_numpy(dtype=float, na_value=np.nan)
    contents, kinds = rows["reference"].to_numpy(dtype=str), rows["distortion"].to_numpy(dtype=str)
    # A pristine image that names a distortion starts that ladder alone, one that names none every ladder without.
    pristine = {(kinds[i], contents[i]): int(i) for i in np.flatnonzero(levels == 0)}
    ladders: dict[tuple[str, str], list[int]] = {}
    for i in np.flatnonzero(whole_ladders(levels, contents, kinds)):
        kind, content = kinds[i], contents[i]
        start = pristine.get((kind, content), pristine.get(("", content)))
        ladders.setdefault((kind, content), [] if start is None else [start]).append(int(i))
    return {
        name: np.array(sorted(indices, key=lambda i: levels[i]), dtype=np.intp)
        for name, indices in sorted(ladders.items())
    }
