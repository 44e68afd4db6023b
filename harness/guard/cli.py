"""``iqa-harness check``: exit code 0 within tolerance, 1 when scores moved, 2 when no comparison could be made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qualiclip_plugin.errors import ConfigError

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
    min_score: Annotated[float | None, typer.Option(help="Fail when an image of --images scores worse.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Fail when mean or worst score of --images fell by more since the baseline.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the findings: .md, .json or .xml (JUnit).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16, for the QualiCLIP metrics.")] = "fp32",
    update: Annotated[bool, typer.Option("--update", help="Take a new baseline and say what changed.")] = False,
) -> None:
    """Compare every score with a baseline and fail when one moved; or hold a folder of images to a minimum."""
    from harness.guard import regression
    from harness.guard import report as check_report

    if report is not None:
        check_report.check_report_path(report)
    limits = regression.Limits(min_score, max_drop) if images and (min_score, max_drop) != (None, None) else None
    if limits is None and (min_score is not None or max_drop is not None):
        raise ConfigError("--min-score and --max-drop need --images")
    chosen = parse_tolerances(tolerance or [])
    # Read first: a missing baseline must not cost minutes of scoring.
    needs_baseline = limits is None or limits.max_drop is not None
    known = regression.read_baseline(baseline) if needs_baseline and (baseline.exists() or not update) else None
    names = tuple(scorer or ()) or tuple(known.scorers if known else ())
    names = names or (("qualiclip-lite",) if images else regression.GUARD_SCORERS)
    snapshot = regression.take_snapshot(regression.read_images(images), names, device=device, precision=precision)
    if update:
        regression.write_baseline(baseline, snapshot)
        typer.echo(f"{baseline}: baseline of {len(snapshot.images)} images by {', '.join(snapshot.scorers)}")
        for name, reason in snapshot.unavailable.items():
            typer.echo(f"left out: {name}: {reason}")
        if known is None:
            return
    comparison = regression.check(snapshot, known, chosen, limits)
    typer.echo(check_report.to_markdown(comparison))
    if report is not None:
        check_report.write_report(report, comparison)
    if comparison.findings and not update:
        raise typer.Exit(1)


def parse_tolerances(values: list[str]) -> dict[str, float]:
    """``VALUE`` or ``SCORER=VALUE`` to absolute tolerances by scorer; the one for all is under ``""``.

    Raises:
        ConfigError: Not a number that is at least 0.
    """
    result = {}
    for text in values:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not number >= 0:
            raise ConfigError(f"--tolerance {text!r}: a number of at least 0 is needed, alone or after SCORER=")
        result[name] = number
    return result
