"""``iqa-harness check``: exit code 0 within tolerance, 1 when scores moved, 2 when no comparison could be made."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from harness.check.findings import Comparison
    from harness.check.limits import Limits
    from harness.check.snapshot import Pictures, Snapshot

BASELINE = Path("results/baseline.json")


def check(
    baseline: Annotated[Path, typer.Option(help="Stored scores to compare with.")] = BASELINE,
    images: Annotated[
        Path | None, typer.Option(help="Folder to score instead of the project's own pictures.", show_default=False)
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help="Repeatable. [default: those of the baseline]", show_default=False)
    ] = None,
    tolerance: Annotated[
        list[str] | None, typer.Option(help="VALUE for all or SCORER=VALUE, absolute; repeatable.")
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            help="Smallest SRCC with the baseline: VALUE or SCORER=VALUE; repeatable. "
            "[default: by scorer, and two neighbours may change places]",
            show_default=False,
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Fail if an image of --images scores worse.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Fail if an image of --images, their mean or the worst fell by more since the baseline."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --max-drop: images of the baseline may be missing.")
    ] = False,
    allow_new: Annotated[
        bool, typer.Option("--allow-new", help="With --max-drop: there may be images that are not in the baseline.")
    ] = False,
    allow_renamed: Annotated[
        bool, typer.Option("--allow-renamed", help="With --max-drop: images may have another name.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write the findings: .md, .html, .json or .xml (JUnit).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16, for the QualiCLIP metrics.")] = "fp32",
    update: Annotated[bool, typer.Option("--update", help="Write a new baseline and print what changed.")] = False,
) -> None:
    """Compare every score with a baseline and fail if one moved; or check a folder of images against a minimum.

    Exit code: 0 within tolerance, 1 something moved, 2 no comparison could be made.
    """
    from harness.check import report as check_report
    from harness.check.findings import Comparison
    from harness.check.limits import Limits
    from harness.check.snapshot import Pictures, find_images

    if report is not None:
        check_report.check_report_path(report)
        if update and not baseline.exists():
            raise ConfigError(f"--report with --update says what changes, and there is no {baseline} yet")
    limits = Limits(min_score, max_drop, allow_missing, allow_new, allow_renamed)
    bounds = (parse_bounds("--tolerance", tolerance or ()), parse_bounds("--rank", rank or (), most=1.0))
    bounded = {name for bound in bounds for name in bound}
    _check_together(limits, update=update, images=images is not None, bounds=bool(bounded))
    pictures = Pictures()
    try:
        pictures = find_images(images)
        take = _snapshot_taker(pictures, scorer or (), device, precision, bounded)
        compared = _updated(baseline, take) if update else _compared(baseline, take, limits, *bounds)
    except QualiCLIPError as error:
        if report is not None:
            check_report.write_report(report, Comparison(error=str(error)))
        raise
    if compared is None:
        return
    if report is not None:
        # Before it is printed: the reader of a pipe may be gone.
        check_report.write_report(report, compared, pictures)
    typer.echo(check_report.to_text(compared))
    if compared.findings and not update:
        raise typer.Exit(1)


def _check_together(limits: Limits, *, update: bool, images: bool, bounds: bool) -> None:
    """Refuse what would have no effect beside another option."""
    if limits.bounded and not images:
        raise ConfigError("--min-score and --max-drop need --images")
    if limits.allows_other_images and limits.max_drop is None:
        raise ConfigError("--allow-missing, --allow-new and --allow-renamed have an effect with --max-drop alone")
    if update and limits.bounded:
        raise ConfigError("--update takes a new baseline, however good the images are: no --min-score or --max-drop")
    if bounds and (update or limits.bounded):
        other = "--update" if update else "--min-score or --max-drop"
        raise ConfigError(f"--tolerance and --rank have no effect with {other}: no score is held to the baseline's")


def _snapshot_taker(
    pictures: Pictures, scorers: Sequence[str], device: str, precision: str, bounded: Collection[str]
) -> Callable[[Snapshot | None], Snapshot]:
    """Takes a snapshot by the scorers asked for, or by those of a baseline; those ``bounded`` must be among them."""
    from harness.check import snapshot

    def take(known: Snapshot | None) -> Snapshot:
        names = tuple(scorers) or tuple(known.scorers if known else ())
        names = names or (("qualiclip-lite",) if pictures.files else snapshot.GUARD_SCORERS)
        if unknown := sorted({*bounded} - {"", *names}):
            raise ConfigError(f"--tolerance or --rank of {unknown[0]!r}: the scorers are {', '.join(names)}")
        return snapshot.take_snapshot(pictures, names, device=device, precision=precision)

    return take


def _compared(
    baseline: Path,
    take: Callable[[Snapshot | None], Snapshot],
    limits: Limits,
    tolerances: dict[str, float],
    ranks: dict[str, float],
) -> Comparison:
    from harness.check.compare import compare
    from harness.check.limits import hold
    from harness.check.snapshot import read_baseline

    if limits.bounded:
        known = None if limits.max_drop is None else read_baseline(baseline)
        return hold(take(known), known, limits)
    # Read first: a missing baseline must not cost minutes of scoring.
    known = read_baseline(baseline)
    return compare(take(known), known, tolerances, ranks)


def _updated(baseline: Path, take: Callable[[Snapshot | None], Snapshot]) -> Comparison | None:
    """Write a new baseline; what it changes, or nothing if there was none."""
    from harness.check import compare as regression
    from harness.check.snapshot import IncomparableError, read_baseline, write_baseline

    known = read_baseline(baseline) if baseline.exists() else None
    taken = take(known)
    if not taken.scorers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in taken.unavailable.items())
        raise IncomparableError(f"no scorer could start, the baseline stays as it is: {reasons}")
    changed = regression.changes(taken, known) if known else None
    if known and changed and (unversioned := regression.moved_without_version(changed, taken, known)):
        raise ConfigError(
            f"{baseline} stays as it is: scores of {', '.join(unversioned)} moved, while weights, libraries and "
            "SCORES_VERSION are those of the baseline; raise it in harness/scorers/identity.py, or stored scores of "
            "both versions would pass for one"
        )
    write_baseline(baseline, taken)
    typer.echo(printable(f"{baseline}: baseline of {len(taken.images)} images by {', '.join(taken.scorers)}"))
    for name, reason in taken.unavailable.items():
        typer.echo(printable(f"left out: {name}: {reason}"))
    for name, row in taken.scorers.items():
        for image, error in row["failures"].items():
            typer.echo(printable(f"without a score: {image} by {name}: {error}"))
    return changed


def parse_bounds(option: str, values: Sequence[str], most: float = math.inf) -> dict[str, float]:
    """``VALUE`` or ``SCORER=VALUE`` to numbers by scorer; the one for all is under ``""``.

    Raises:
        ConfigError: Not a number from 0 to ``most``.
    """
    result = {}
    for text in values:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= most:
            asked = "a number of at least 0" if math.isinf(most) else f"a number from 0 to {most:g}"
            raise ConfigError(f"{option} {text!r}: {asked} is needed, alone or after SCORER=")
        result[name] = number
    return result
