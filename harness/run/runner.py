"""A whole run: open every dataset, start each scorer once, fill the cells, write the tables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.decode import Kept
from harness.data.open import ImageSet, open_datasets
from harness.data.parquet import DamagedError
from harness.data.spec import catalogue
from harness.leaderboard.render import render
from harness.leaderboard.table import table, timings, to_csv
from harness.results.measure import Settings
from harness.results.store import Store
from harness.run.engine import among, evaluate, unavailable_cell
from harness.run.progress import Reporter
from harness.run.score import Options
from harness.scorers.kinds import Scorer
from harness.scorers.names import DEFAULT_SCORERS, ScorerError, known_scorers, split_label
from harness.scorers.start import create_scorer
from qualiclip_plugin.utils.atomic import one_at_a_time
from qualiclip_plugin.utils.errors import ConfigError, DatasetError
from qualiclip_plugin.utils.process_settings import free_memory

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_DATASETS = ("ladders",)
_MOST_NAMED = 5
IMAGE_LABELS = ["file_name", "opinion", "reference", "distortion", "level"]
"""What together tells an image whose file was altered."""
KEPT_SHARE = 4
"""Of the memory that is free when a run begins, one part of so many may hold decoded images."""


@dataclass(frozen=True)
class RunRequest:
    """What to run; see ``iqa-harness run --help``."""

    scorers: tuple[str | Scorer, ...] = ()
    datasets: tuple[str, ...] = ()
    output: Path = Path("results")
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 0
    workers: int = -1
    processes: bool = False
    include: tuple[Path, ...] = ()
    retry_failed: bool = False
    allow_partial: bool = False
    stream: bool = False
    limit: int = 0
    engine: str = "local"
    settings: Settings = field(default_factory=Settings)


def run_all(request: RunRequest, reporter: Reporter) -> list[dict[str, Any]]:
    """Run, write the tables, and return the cells of what was asked for; those of a part (``limit``) are not written.

    Raises:
        QualiCLIPError: A dataset or setting is invalid, or the output holds results of another dataset of its name
            (all found before anything is scored), or the output is not writable.
    """
    from qualiclip_plugin.scoring.local import check_device

    check_device(request.device)
    kept = Kept(free_memory() // KEPT_SHARE)
    options = _options(request, kept if request.engine == "local" else None)
    specs = catalogue(request.include)
    names = request.datasets or DEFAULT_DATASETS
    scorers = _named(request.scorers or DEFAULT_SCORERS)
    opened = open_datasets(names, specs, allow_partial=request.allow_partial, stream=request.stream)
    opened = [images.first(request.limit) for images in opened]
    store = Store(request.output)
    for images in opened:
        check_stored(images, store)
        if images.unlisted:
            reporter.note(_without_row(images))
    store.sweep()
    cells: list[dict[str, Any]] = []
    with _engine(request.engine):
        for number, (name, scorer) in enumerate(scorers.items(), start=1):
            if number == len(scorers):
                kept.room = 0  # nobody comes after it
            cells.extend(_run_scorer(name, scorer, opened, store, request, options, reporter))
    if not all(images.limit for images in opened):
        write_tables(store)
    return cells


def shortfalls(request: RunRequest, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was asked for and is not there, a line each; empty if all is.

    A scorer of the default list that cannot start was not asked for, as long as another one can.
    """
    wanted = cells if request.scorers or not any(cell["subsets"] for cell in cells) else ()
    lines = [
        f"{cell['scorer']['name']} has no score on {cell['dataset']['name']}: {cell['reason']}"
        for cell in wanted
        if not cell["subsets"]
    ]
    return lines + [
        f"{cell['scorer']['name']}: {len(cell['failures'])} of {cell['dataset']['images']} images of "
        f"{cell['dataset']['name']} have no score"
        for cell in cells
        if cell["failures"]
    ]


def _named(asked: Sequence[str | Scorer]) -> dict[str, str | Scorer]:
    """Scorers by what they are called.

    Raises:
        ConfigError: Two have one name, or a label is the name of a known metric.
    """
    found: dict[str, str | Scorer] = {}
    for entry in asked:
        name = split_label(entry)[0] if isinstance(entry, str) else entry.name
        if isinstance(entry, str) and name != entry and name in known_scorers():
            raise ConfigError(f"--scorer {entry}: {name} is the name of a metric; choose another label")
        if found.setdefault(name, entry) != entry:
            raise ConfigError(f"two scorers are named {name!r}: give them labels, as in LABEL=cmd:COMMAND")
    return found


def write_tables(store: Store) -> pd.DataFrame:
    """Write ``leaderboard.csv``, ``leaderboard.md`` and ``timings.csv`` of all stored cells; returns the table.

    The first two follow from scores, labels and settings alone: they are the same, byte for byte, however often a
    run was interrupted (a table measured on several days names them). What differs from run to run is in the third.

    Raises:
        StoreError: A cell cannot be read, or the folder not be written.
    """
    # One run at a time, from reading to writing: the last one has read the cells of all that have ended before.
    with one_at_a_time(store.root):
        cells = list(store.cells())
        frame = table(cells)
        store.write_text(store.root / "leaderboard.csv", to_csv(frame))
        store.write_text(store.root / "leaderboard.md", render(cells, "markdown"))
        measured = timings(cells).to_csv(index=False, float_format="%.4g", lineterminator="\n")
        store.write_text(store.root / "timings.csv", measured)
    return frame


def settings(fit: str, intervals: bool = True) -> Settings:
    """Settings of the figures from the command line.

    Raises:
        ConfigError: An unknown curve.
    """
    if fit not in ("logistic4", "logistic5"):
        raise ConfigError(f"--fit is {fit!r}; logistic4 or logistic5 is needed")
    return Settings(form="logistic5" if fit == "logistic5" else "logistic4", intervals=intervals)


def _without_row(images: ImageSet) -> str:
    named = ", ".join(images.unlisted[:_MOST_NAMED])
    more = ", ..." if len(images.unlisted) > _MOST_NAMED else ""
    return (
        f"{images.spec.name}: {len(images.unlisted)} images have no row in the metadata and no score: {named}{more}"
    )


def check_stored(images: ImageSet, store: Store) -> None:
    """Refuse a dataset that has little but its name in common with the one whose results are stored."""
    if store.has_labels(images.spec.key, images.table):
        return
    try:
        stored, _ = store.labels(images.spec.key)
    except (FileNotFoundError, DamagedError):
        return  # they are written anew
    # A dataset may grow or shrink, and its files be renamed, altered or rated anew; none of it makes another one.
    # But names such as 1.png are in many datasets: alone they say nothing.
    labelled = images.table[IMAGE_LABELS].merge(stored[IMAGE_LABELS].drop_duplicates(), how="left", indicator=True)
    same_labels = labelled["_merge"].to_numpy() == "both"
    shared = int((among(images.table["image_hash"], stored["image_hash"]).to_numpy() | same_labels).sum())
    smaller = min(len(images), len(stored))
    if 2 * shared < smaller:
        raise DatasetError(
            f"{store.labels_path(images.spec.key)}: a dataset named {images.spec.name!r} with other images: "
            f"{shared} of {smaller} are the same; give this one as NAME=FOLDER or use another --output"
        )


def _options(request: RunRequest, kept: Kept | None) -> Options:
    return Options(
        batch_size=request.batch_size,
        workers=request.workers,
        processes=request.processes,
        retry_failed=request.retry_failed,
        engine=request.engine,
        write_every=_write_every(os.environ.get("HARNESS_WRITE_EVERY")),
        kept=kept,
    )


def _write_every(text: str | None) -> float:
    try:
        seconds = float(text) if text else Options.write_every
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ConfigError(f"HARNESS_WRITE_EVERY is {text!r}: a number of seconds is needed")
    return seconds


def _run_scorer(
    name: str,
    asked: str | Scorer,
    opened: list[ImageSet],
    store: Store,
    request: RunRequest,
    options: Options,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    try:
        scorer = (
            asked
            if isinstance(asked, Scorer)
            else create_scorer(asked, device=request.device, precision=request.precision)
        )
        return [evaluate(scorer, images, store, options, reporter, request.settings) for images in opened]
    except ScorerError as error:
        reporter.note(f"{name} cannot start: {error}")
        return [_unavailable(name, images, store, str(error)) for images in opened]


def _engine(name: str) -> AbstractContextManager[None]:
    if name not in ("local", "ray"):
        raise ConfigError(f"engine {name!r}: local or ray is needed")
    if name == "local":
        return nullcontext()
    from qualiclip_plugin.scoring.ray_pool import cluster

    return cluster()


def _unavailable(name: str, images: ImageSet, store: Store, reason: str) -> dict[str, Any]:
    cell = unavailable_cell(name, images.spec.name, reason)
    path = store.cell_path(name, images.spec.name)
    if images.limit:
        return cell
    # A table measured where the scorer could start is worth more than the reason why it cannot start here.
    known = store.read_cell(path) if path.exists() else None
    if known is None or not known["subsets"]:
        store.write_cell(path, cell)
    return cell
