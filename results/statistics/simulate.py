"""Do the tests hold their size and the intervals their coverage? Simulations whose truth is known.

    python results/statistics/simulate.py            # two minutes on one core; writes simulations.csv and README.md
    python results/statistics/simulate.py --trials 200

Two scorers are equally good by construction, so every decision between them is a false one: the share of them is the
size of the test. The true value of a statistic is that of some ten thousand contents. The functions under test are
those that the tables and the report use.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy

from harness import statistics as st

HERE = Path(__file__).parent
CONTENTS = (3, 5, 10, 25, 100)
ALPHA = 0.05
COLUMNS = ("what", "images", "contents", "trials", "share", "error")
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class World:
    """Where images and two equally good scorers come from.

    Attributes:
        name: For the table.
        images: Number of contents and generator to images.
        scores: Images and generator to the scores of two scorers.
        statistics: Keys of what is compared and estimated.
        contents: Numbers of contents to try.
        truth: Contents behind the true values, in each of ten parts.
        dear: A trial takes long, and so many times fewer are made.
    """

    name: str
    images: Callable[[int, np.random.Generator], st.Images]
    scores: Callable[[st.Images, np.random.Generator], Pair]
    statistics: tuple[str, ...]
    contents: tuple[int, ...] = CONTENTS
    truth: int = 2000
    dear: int = 1


KINDS, LEVELS, PER_CONTENT = 3, 3, 8


@cache
def _ladder_images(contents: int) -> st.Images:
    rows = [(c, "", 0) for c in range(contents)]
    rows += [(c, f"kind{k}", level) for c in range(contents) for k in range(KINDS) for level in (1, 2, 3)]
    content, kind, level = (np.array(column) for column in zip(*rows, strict=True))
    steps = level.astype(float)
    # A pair is discriminable where two levels lie between its images.
    return st.Images(np.full(len(rows), np.nan), content.astype(str), kind, steps, -steps[None], (2.0,))


def ladder_images(contents: int, generator: np.random.Generator) -> st.Images:
    """Each content pristine and at three levels of three distortion types."""
    return _ladder_images(contents)


def ladder_scores(images: st.Images, generator: np.random.Generator) -> Pair:
    """Scores fall with the level, on some contents and types more than on others, for each scorer in its own way."""
    number = images.clusters.max() + 1
    kinds = np.unique(images.kinds, return_inverse=True)[1]
    base = 0.5 * generator.normal(size=number)[images.clusters]

    def one() -> np.ndarray:
        slope = 0.6 + 0.4 * generator.normal(size=number)[images.clusters]
        slope = slope + 0.3 * generator.normal(size=(number, KINDS + 1))[images.clusters, kinds]
        return base - slope * images.levels + 0.8 * generator.normal(size=len(images))

    return one(), one()


def _voted(liking: np.ndarray) -> np.ndarray:
    # Opinions saturate at both ends of the scale, as people's do.
    return 50 + 40 * np.tanh(liking / 2)


def _liking(images: st.Images) -> np.ndarray:
    return 2 * np.arctanh((images.opinions - 50) / 40)


def shared_images(contents: int, generator: np.random.Generator) -> st.Images:
    """Rated images, eight of each content: people like some contents better."""
    content = np.repeat(np.arange(contents), PER_CONTENT)
    liked = 0.7 * generator.normal(size=contents)[content] + generator.normal(size=len(content))
    return st.rated(_voted(liked), content)


def shared_scores(images: st.Images, generator: np.random.Generator) -> Pair:
    """Two scorers that err alike, by content and by image."""
    return _erring(images, generator, (0.6, 0.6), (0.6, 0.6))


def unlike_scores(images: st.Images, generator: np.random.Generator) -> Pair:
    """Two scorers with the same correlation, one of which errs by content, the other by image."""
    return _erring(images, generator, (0.2, np.sqrt(0.68)), (np.sqrt(0.68), 0.2))


def _erring(images: st.Images, generator: np.random.Generator, *errors: tuple[float, float]) -> Pair:
    number = images.clusters.max() + 1
    first, second = (
        _liking(images)
        + by_content * generator.normal(size=number)[images.clusters]
        + by_image * generator.normal(size=len(images))
        for by_content, by_image in errors
    )
    return first, second


def single_images(contents: int, generator: np.random.Generator) -> st.Images:
    """Rated images of which no two share a content."""
    return st.rated(_voted(generator.normal(size=contents)))


def single_scores(images: st.Images, generator: np.random.Generator) -> Pair:
    """Two scorers that err alike, in part on the same images."""
    common = 0.5 * generator.normal(size=len(images))
    first, second = (_liking(images) + common + 0.8 * generator.normal(size=len(images)) for _ in range(2))
    return first, second


WORLDS = (
    World("ladders", ladder_images, ladder_scores, ("l_test", "d_test", "p_test"), truth=500),
    World("8 images of each content", shared_images, shared_scores, ("srcc",)),
    World("8 images of each content, unlike scorers", shared_images, unlike_scores, ("srcc",)),
    World("independent images", single_images, single_scores, ("srcc", "krcc", "plcc_raw"), (5, 10, 25, 100), 5000),
    World("independent images", single_images, single_scores, ("plcc_fit", "rmse"), (25, 100), 5000, 5),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: a share of trials, with its Monte-Carlo standard error."""

    what: str
    images: str
    contents: int
    trials: int
    share: float

    @property
    def error(self) -> float:
        """Standard error of the share."""
        return float(np.sqrt(max(self.share * (1 - self.share), 0.0) / self.trials)) if self.trials else float("nan")


def truths(world: World, generator: np.random.Generator) -> dict[str, float]:
    """The value of each statistic on very many contents: the mean over ten parts of ``world.truth``."""
    found: dict[str, list[float]] = {key: [] for key in world.statistics}
    for _ in range(10):
        images = world.images(world.truth, generator)
        scores, _ = world.scores(images, generator)
        for key in world.statistics:
            found[key].append(st.measure(key, scores, images).value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def simulate(world: World, contents: int, trials: int, seed: int, true: dict[str, float]) -> Iterator[Row]:
    """Size of the sign flips and coverage of the intervals for a number of contents."""
    generator = np.random.default_rng(seed)
    decided = dict.fromkeys(world.statistics, 0)
    tested, covered, known = (dict(decided) for _ in range(3))
    compared = [key for key in world.statistics if not st.STATISTICS[key].flattered]
    for _ in range(trials):
        images = world.images(contents, generator)
        first, second = world.scores(images, generator)
        for key, interval in st.intervals(world.statistics, first, images).items():
            known[key] += not interval.reason
            covered[key] += interval.low <= true[key] <= interval.high
        for key in compared:
            matrix = st.significance_matrix({"a": first, "b": second}, images, key, draws=999, alpha=ALPHA)
            tested[key] += not matrix.reasons
            decided[key] += matrix.verdicts[0][1] in ("better", "worse")
    for key in world.statistics:
        title = st.STATISTICS[key].title
        if key in compared:
            share = _share(decided[key], tested[key])
            yield Row(f"size, sign flips, {title}", world.name, contents, tested[key], share)
        yield Row(
            f"coverage, interval of {title}", world.name, contents, known[key], _share(covered[key], known[key])
        )


def simulate_paired(method: str, contents: int, trials: int, seed: int) -> Row:
    """Size of Williams' t or of Pitman's test on independent images."""
    generator = np.random.default_rng(seed)
    decided = tested = 0
    for _ in range(trials):
        images = single_images(contents, generator)
        first, second = single_scores(images, generator)
        matrix = st.significance_matrix({"a": first, "b": second}, images, method=method)  # type: ignore[arg-type]
        tested += not matrix.reasons
        decided += matrix.verdicts[0][1] in ("better", "worse")
    name = {"williams": "Williams' t, SRCC", "pitman": "Pitman's test, residuals"}[method]
    return Row(f"size, {name}", "independent images", contents, tested, _share(decided, tested))


def williams_where_contents_are_shared(trials: int, seed: int) -> Row:
    """What Williams' t does where it is refused: 25 contents of 40 images each, scorers that err by content."""
    generator = np.random.default_rng(seed)
    decided = 0
    content = np.repeat(np.arange(25), 40)
    for _ in range(trials):
        opinions = _voted(0.7 * generator.normal(size=25)[content] + generator.normal(size=1000))
        first, second = _erring(st.rated(opinions, content), generator, (0.6, 0.6), (0.6, 0.6))
        decided += st.williams_test(first, second, opinions).p_value <= ALPHA
    return Row("size, Williams' t, SRCC (refused)", "40 images of each content", 25, trials, decided / trials)


def _share(count: int, of: int) -> float:
    return count / of if of else float("nan")


def all_rows(trials: int) -> Iterator[Row]:
    """The whole table; fewer trials where a trial is dear."""
    for number, world in enumerate(WORLDS):
        true = truths(world, np.random.default_rng(1000 + number))
        for contents in world.contents:
            fewer = trials // (4 if contents == 100 and "l_test" in world.statistics else world.dear)
            yield from simulate(world, contents, fewer, 100 * number + contents, true)
    for method in ("williams", "pitman"):
        for contents in (10, 25, 100):
            yield simulate_paired(method, contents, trials // (5 if method == "pitman" else 1), contents)
    yield williams_where_contents_are_shared(trials // 4, 0)


def markdown(rows: list[Row]) -> str:
    """The table for reading: one line per test or interval, one column per number of contents."""
    numbers = sorted({row.contents for row in rows})
    lines = ["| what | images | " + " | ".join(map(str, numbers)) + " |", "|---|---|" + "---:|" * len(numbers)]
    for what, images in dict.fromkeys((row.what, row.images) for row in rows):
        shown = {row.contents: f"{row.share:.3f}" for row in rows if (row.what, row.images) == (what, images)}
        lines.append(f"| {what} | {images} | " + " | ".join(shown.get(number, "") for number in numbers) + " |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """The README beside the table."""
    trials = sorted({row.trials for row in rows if row.trials})
    return f"""# Do the tests and intervals hold?

Simulations with a known truth, made by `python results/statistics/simulate.py`. Two scorers are equally good by
construction, so every decision at .05 is a false one. Intervals should hold the true value in 95 % of the trials.
The columns are numbers of contents (of images, if these are independent). There are {trials[-1]:,} trials, a
quarter of that for ladders of 100 contents, a fifth for fitted curves, and fewer if a statistic has no interval (a
perfect order); `simulations.csv` has the number and the standard error of each share. Up to 5 contents
sign flips cannot decide: their smallest p is .0625.
Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}.

{markdown(rows)}
"""


def main() -> None:
    """Run all simulations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    rows = []
    for row in all_rows(trials):
        print(f"{row.what:50} {row.images:42} {row.contents:4} {row.share:.4f}", file=sys.stderr, flush=True)
        rows.append(row)
    with (HERE / "simulations.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((r.what, r.images, r.contents, r.trials, f"{r.share:.4f}", f"{r.error:.4f}") for r in rows)
    (HERE / "README.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
