"""Snapshots: the score of every image by some scorers, the figures over them, and the versions that made them.

Scores are always computed again: a cache would hide what is looked for. A baseline is a stored snapshot.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import statistics as st
from harness.check.images import PRISTINE, guard_images
from harness.data.decode import Decoded
from harness.results.schemas import BASELINE
from harness.scorers.kinds import Scorer
from harness.scorers.names import ScorerError
from harness.scorers.start import create_scorer
from qualiclip_plugin.models.prompts import PROMPT_PAIRS
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.errors import ImageError, QualiCLIPError
from qualiclip_plugin.utils.images import images_in, read_image
from qualiclip_plugin.utils.json_yaml import SEAL, read_document, sealed, write_json
from qualiclip_plugin.utils.shown import portable, printable

Pixels = NDArray[np.uint8]

SCHEMA_VERSION = 1
GUARD_SCORERS = ("qualiclip-lite", "piqe", "entropy")
"""Scorers of the project's own baseline: those that start on every machine, without any file to download."""
VERSIONS = ("qualiclip-plugin", "torch", "torchvision", "pyiqa", "open_clip_torch", "timm", "numpy", "Pillow")


class IncomparableError(QualiCLIPError):
    """Baseline and present cannot be compared: no baseline, another image set, a scorer that does not start."""


@dataclass(frozen=True)
class Snapshot:
    """Scores of some images by some scorers; see the module.

    Attributes:
        images: Image name to the SHA-256 of its pixels.
        scorers: Scorer name to ``lower_better``, ``precision``, ``identity``, ``scores``, ``failures``, ``figures``
            and, for the QualiCLIP metrics, ``prompts``.
        unavailable: Scorers that could not start, with the reason.
        date: When it was taken, UTC.
        files: Image name to the SHA-256 of its file; none for pictures that are generated.
    """

    images: dict[str, str]
    scorers: dict[str, dict[str, Any]]
    unavailable: dict[str, str]
    versions: dict[str, str]
    date: str
    files: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Pictures:
    """Images to guard.

    Attributes:
        generated: Name to RGB, uint8 (H, W, 3), of pictures that are generated.
        files: Name to path of those that are files.
    """

    generated: Mapping[str, Pixels] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted([*self.generated, *self.files])

    def pixels(self, name: str) -> Pixels:
        """RGB, uint8 (H, W, 3); a file is decoded at every call, so that a folder of photographs fills no memory.

        Raises:
            ImageError: It cannot be read.
        """
        if name in self.generated:
            return self.generated[name]
        pixels: Pixels = read_image(self.files[name]).permute(1, 2, 0).numpy()
        return pixels


def find_images(folder: str | os.PathLike[str] | None) -> Pictures:
    """The images to guard: those under ``folder`` by relative path, or the project's own.

    Raises:
        ImageError: It is no folder, or holds none.
    """
    if folder is None:
        return Pictures(guard_images())
    root = Path(folder)
    if not root.is_dir():
        # A file or a pattern leaves nothing that names of images could be relative to.
        raise ImageError(f"{printable(root)}: no such folder")
    # As text that a baseline can hold.
    return Pictures(files={portable(path.relative_to(root).as_posix()): path for path in images_in([root])})


def take_snapshot(
    pictures: Pictures, scorers: Sequence[str], *, device: str = "cpu", precision: str = "fp32"
) -> Snapshot:
    """Score every image with every scorer.

    Args:
        scorers: Names as in ``iqa-harness run``.
        precision: Of the QualiCLIP metrics whose names do not say ``@precision=``.

    Raises:
        ImageError: An image cannot be read (found before anything is scored), or changes meanwhile.
    """
    # First, because an image that cannot be read must not cost minutes of scoring.
    hashes = _hashes(pictures)
    files = {name: sha256_file(path) for name, path in sorted(pictures.files.items())}
    taken: dict[str, dict[str, Any]] = {}
    unavailable = {}
    for name in scorers:
        try:
            scorer = create_scorer(name, device=device, precision=precision)
        except ScorerError as error:
            unavailable[name] = str(error).splitlines()[0]
            continue
        taken[name] = {**_declared(scorer), **_scores(scorer, pictures, hashes)}
    return Snapshot(
        images=hashes,
        scorers=taken,
        unavailable=unavailable,
        versions={package: metadata.version(package) for package in VERSIONS},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=files,
    )


def _hashes(pictures: Pictures) -> dict[str, str]:
    hashes, unreadable = dict[str, str](), list[str]()
    for name in pictures.names:
        try:
            hashes[name] = _digest(pictures.pixels(name))
        except ImageError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ImageError(f"{len(unreadable)} of {len(pictures.names)} images cannot be read:", *unreadable)
    return hashes


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _declared(scorer: Scorer) -> dict[str, Any]:
    """What a scorer says of itself; a change is a finding whether or not a score moved."""
    declared = {
        "lower_better": scorer.lower_better,
        "precision": scorer.identity.get("options", {}).get("precision", "fp32"),
        "identity": dict(scorer.identity),
    }
    if str(scorer.identity.get("metric", "")).startswith("qualiclip"):
        # They reach the scores of weights that bring no prompt features, which need a download.
        declared["prompts"] = [" / ".join(pair) for pair in PROMPT_PAIRS]
    return declared


def _scores(scorer: Scorer, pictures: Pictures, hashes: Mapping[str, str]) -> dict[str, Any]:
    from harness.run.progress import Silent
    from harness.run.score import BatchLimit, Options, score_batch

    scores: dict[str, float] = {}
    failures: dict[str, str] = {}
    # One image at a time: what else is scored must not be able to hide a change.
    limit = BatchLimit(Options(batch_size=1), scorer)
    for index, (name, digest) in enumerate(hashes.items()):
        pixels = pictures.pixels(name)
        if _digest(pixels) != digest:
            raise ImageError(f"{name}: it was changed while it was scored")
        item = Decoded(index, np.ascontiguousarray(pixels.transpose(2, 0, 1)), "")
        for row in score_batch(scorer, [item], limit, Silent()):
            if row["error"]:
                failures[name] = row["error"]
            else:
                scores[name] = row["score"]
    return {
        "scores": scores,
        "failures": failures,
        "figures": figures(scores, lower_better=scorer.lower_better),
    }


def figures(scores: Mapping[str, float], *, lower_better: bool) -> dict[str, float]:
    """Summary of some scores: mean, worst and, for the project's own pictures, the D-test; empty without scores."""
    if not scores:
        return {}
    values = np.array(list(scores.values()))
    result = {"mean": float(values.mean()), "worst": float(values.max() if lower_better else values.min())}
    pristine = [name.endswith(f"/{PRISTINE}") for name in scores]
    separation = st.d_test(st.oriented(values, lower_better=lower_better), pristine)
    return result | ({"d_test": float(separation.value)} if separation.defined else {})


def write_baseline(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot as the new baseline, sealed as the cells of results are, in one step."""
    write_json(path, sealed(asdict(snapshot)))


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline; those of earlier releases have no seal.

    Raises:
        IncomparableError: It is missing, not a baseline, altered after it was written, or of another schema version.
    """
    if not path.exists():
        raise IncomparableError(f"no baseline at {path}; --update takes one")
    other = IncomparableError, "remove it to take a new one"
    content = read_document(path, BASELINE, IncomparableError, "a baseline", SCHEMA_VERSION, other)
    content.pop(SEAL, None)
    return Snapshot(**content)
