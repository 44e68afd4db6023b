"""Score missing images, store scores as they come, and compute one cell."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.labels import ROWS_AT_ONCE
from harness.data.open import ImageSet
from harness.data.parquet import DamagedError
from harness.results.measure import FIGURES_VERSION, Directions, Settings, cell_figures, join_scores
from harness.results.store import SCHEMA_VERSION, ScoreKey, Store
from harness.run.progress import Reporter, Silent
from harness.run.ray import cluster_rows
from harness.run.score import Options, scored_rows
from harness.scorers.identity import READING_VERSION, recorded_versions
from harness.scorers.kinds import Scorer
from harness.scorers.names import Facts, ScorerError, facts

if TYPE_CHECKING:
    import pandas as pd


def score_key(scorer: Scorer, images: ImageSet) -> ScoreKey:
    """The key for the stored scores of a scorer on a dataset."""
    from qualiclip_plugin.utils.images.colour import littlecms_version

    libraries = {"Pillow": metadata.version("Pillow"), "LittleCMS": littlecms_version()}
    reading = {**images.reading, "version": READING_VERSION, **libraries}
    return ScoreKey(scorer.name, images.spec.key, {"scorer": dict(scorer.identity), "reading": reading})


def evaluate(
    scorer: Scorer,
    images: ImageSet,
    store: Store,
    options: Options = Options(),
    reporter: Reporter | None = None,
    settings: Settings = Settings(),
) -> dict[str, Any]:
    """Score the images that have no stored score, then write and return the cell; of a part (``limit``) return it.

    Raises:
        StoreError: The results folder cannot be written or read.
    """
    reporter = reporter or Silent()
    key = score_key(scorer, images)
    scores = store.scores(key)
    missing = missing_images(images.table, scores, options.retry_failed)
    reporter.start(scorer.name, images.spec.name, len(images.table), len(images.table) - len(missing))
    try:
        score_missing(scorer, images, missing, store, key, options, reporter)
    finally:
        reporter.finish()
    store.merge(key)
    scores = store.scores(key) if missing else scores
    if images.limit:
        # A quick try keeps its scores, for the whole run to take up, and never stands for the dataset.
        return {**described(scorer, images, key), **summarise(scorer, images, scores, settings)}
    path = store.cell_path(scorer.name, images.spec.name)
    known = _known_cell(store, path, reporter)
    labels_hash = known.get("dataset", {}).get("labels_hash", "")
    # To make the hash of many labels anew takes longer than all else where nothing is to be done.
    if not labels_hash or not store.has_labels(images.spec.key, images.table, labels_hash):
        labels_hash = images.labels_hash
        store.write_labels(images.spec.key, images.table, labels_hash)
    about = described(scorer, images, key, labels_hash)
    inputs = inputs_hash(about, images, scores, settings)
    if known.get("inputs") == inputs:
        return known
    store.write_cell(path, {**about, **summarise(scorer, images, scores, settings), "inputs": inputs})
    return store.read_cell(path)


def _known_cell(store: Store, path: Path, reporter: Reporter) -> dict[str, Any]:
    try:
        return store.read_cell(path) if path.exists() else {}
    except DamagedError as error:
        reporter.note(f"{error}; it is made again from the stored scores")
        return {}


def inputs_hash(about: Mapping[str, Any], images: ImageSet, scores: pd.DataFrame, settings: Settings) -> str:
    """Fingerprint of everything that a cell is made from: the same inputs give the same cell."""
    import pandas as pd

    used = scores[among(scores["image_hash"], images.table["image_hash"])]
    others = [about, images.complete, images.spec.split, asdict(settings), FIGURES_VERSION]
    digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode())
    for start in range(0, len(used), ROWS_AT_ONCE):
        rows = used[["image_hash", "score", "error"]].iloc[start : start + ROWS_AT_ONCE]
        digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def missing_images(labels: pd.DataFrame, scores: pd.DataFrame, retry_failed: bool) -> list[int]:
    """Positions of the images to score: one per content that has no stored score."""
    known = scores[scores["error"] == ""] if retry_failed else scores
    fresh = (~among(labels["image_hash"], known["image_hash"])).to_numpy().nonzero()[0]
    return [int(index) for index in fresh[~labels["image_hash"].iloc[fresh].duplicated().to_numpy()]]


def among(values: pd.Series, known: pd.Series) -> pd.Series:
    """Which texts are among the known ones; by Arrow, as pandas makes an object of each."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.is_in(pa.array(values, pa.large_string()), value_set=pa.array(known, pa.large_string()))
    return pd.Series(found.to_numpy(zero_copy_only=False), values.index, dtype=bool)


def score_missing(
    scorer: Scorer,
    images: ImageSet,
    missing: Sequence[int],
    store: Store,
    key: ScoreKey,
    options: Options,
    reporter: Reporter,
) -> None:
    """Decode, score and store the images at the positions ``missing``; at most some seconds are unwritten."""
    if not missing:
        return
    hashes = images.table["image_hash"]
    engine = cluster_rows if options.engine == "ray" else scored_rows
    pending: list[dict[str, Any]] = []
    written = seen = time.monotonic()
    try:
        for row in engine(scorer, images, missing, options, reporter):
            pending.append({**row, "image_hash": hashes.iloc[row.pop("index")]})
            now = time.monotonic()
            # Another wait like the one for this row must not carry the waiting scores past their time.
            due, seen = 2 * now - seen - written > options.write_every, now
            if due:
                store.append(key, pending)
                pending, written = [], now
    finally:
        store.append(key, pending)


def described(scorer: Scorer, images: ImageSet, key: ScoreKey, labels_hash: str = "") -> dict[str, Any]:
    """The part of a cell about its scorer and dataset; it needs no scores. ``labels_hash``: if it is known."""
    spec = images.spec
    return {
        "scorer": {
            "name": scorer.name,
            "lower_better": scorer.lower_better,
            "fingerprint": key.fingerprint,
            "identity": dict(scorer.identity),
            "parameters": scorer.parameters,
            **asdict(scorer.facts),
        },
        "dataset": {
            "name": spec.name,
            "version": spec.version,
            "images": len(images),
            "images_declared": spec.images or None,
            "missing": len(images.missing),
            "labels_hash": labels_hash or images.labels_hash,
            "opinion": {"kind": spec.opinion.kind, "lower_better": spec.opinion.lower_better}
            if spec.opinion
            else None,
            "reading": images.reading,
            "seen_by": list(spec.seen_by),
            "unordered": list(spec.unordered),
        },
    }


def summarise(scorer: Scorer, images: ImageSet, scores: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    """The part of a cell about the scores, from stored scores only."""
    spec = images.spec
    rows = join_scores(images.table, scores, spec.unordered)
    failed = rows[rows["error"] != ""]
    directions = Directions(scorer.lower_better, bool(spec.opinion and spec.opinion.lower_better))
    used = rows.drop_duplicates("image_hash")
    return {
        "schema_version": SCHEMA_VERSION,
        "status": ", ".join(_shortcomings(images, len(failed))) or "complete",
        "date": max(used["finished"].dropna(), default=""),
        "device": sorted(set(used["device"].dropna())),
        "seconds": round(float(used["seconds"].sum()), 3),
        "versions": recorded_versions(),
        "failures": [{"file_name": row.file_name, "error": row.error} for row in failed.itertuples()],
        "settings": asdict(settings),
        **cell_figures(rows, directions, settings, ratio=spec.split == "ratio"),
    }


def _shortcomings(images: ImageSet, failed: int) -> list[str]:
    what = {
        f"the first {images.limit} images alone": images.limit > 0,
        "partial dataset": not images.complete,
        "failed images": failed > 0,
    }
    return [name for name, so in what.items() if so]


def unavailable_cell(name: str, dataset: str, reason: str) -> dict[str, Any]:
    """The cell of a scorer that could not start."""
    try:
        known = facts(name)
    except ScorerError:
        known = Facts()
    # The number of a system's error says nothing that its words do not, and the scorer is named beside its reason.
    reason = re.sub(r"<urlopen error (.*?)>", r"\1", re.sub(r"\[Errno -?\d+\] ?", "", reason))
    reason = reason.removeprefix(f"{name}: ")
    home = os.path.expanduser("~").rstrip("/")  # empty in many containers, where it is the root
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "unavailable",
        # Results are shared; where this machine keeps its files is nobody's business.
        "reason": reason.replace(home, "~") if home else reason,
        "scorer": {"name": name, **asdict(known)},
        "dataset": {"name": dataset},
        "subsets": {},
        "failures": [],
    }
