"""Command line of the harness: ``iqa-harness run | table | report | list``. Heavy imports wait until use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.check.cli import check
from qualiclip_plugin.utils.errors import QualiCLIPError
from qualiclip_plugin.utils.shown import printable
from qualiclip_plugin.utils.terminal import Version
from qualiclip_plugin.utils.terminal import run as run_command

app = typer.Typer(
    help="Compare no-reference image quality metrics: resumable, per image, with failures counted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(version: Version = False) -> None:
    """Options before the command; each does its work in its own callback."""


Output = Annotated[Path, typer.Option(help="Results folder.")]
Include = Annotated[list[Path] | None, typer.Option(help="Folder with further dataset YAML files.")]


@app.command()
def run(
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="[LABEL=]NAME@option=value,..., module:function or cmd:COMMAND; repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Name, FOLDER or NAME=FOLDER; repeatable; none: ladders.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Results folder; scores already there are not computed again.")] = Path(
        "results"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16, for the QualiCLIP metrics.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=0, help="Most images in a batch; 0: by image size.")] = 0,
    workers: Annotated[int, typer.Option(min=-1, help="Processes that decode; 0: a thread; -1: automatic.")] = -1,
    include: Include = None,
    retry_failed: Annotated[bool, typer.Option(help="Score images again that failed before.")] = False,
    allow_partial: Annotated[bool, typer.Option(help="Accept datasets with missing images, marked.")] = False,
    stream: Annotated[bool, typer.Option(help="Read remote datasets as they come, without keeping them.")] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="A quick try: only so many images of each dataset; not in the written tables.")
    ] = 0,
    fit: Annotated[str, typer.Option(help="Curve before PLCC and RMSE: logistic4 or logistic5.")] = "logistic4",
    intervals: Annotated[bool, typer.Option(help="95 % intervals of the figures.")] = True,
    engine: Annotated[
        str, typer.Option(help="local: this process. ray: all GPUs or cores of a Ray cluster.")
    ] = "local",
    quiet: Annotated[bool, typer.Option(help="No progress on standard error.")] = False,
    json_log: Annotated[bool, typer.Option(help="Progress as JSON lines on standard error.")] = False,
) -> None:
    """Score every dataset with every scorer, where scores are missing, and print the leaderboard.

    Exit code: 0 everything requested was computed, 1 a scorer of --scorer could not start or an image has no score,
    2 the command could not start.
    """
    from harness.run.runner import RunRequest, run_all, settings, shortfalls

    request = RunRequest(
        scorers=tuple(scorer or ()),
        datasets=tuple(dataset or ()),
        output=output,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        processes=True,
        include=tuple(include or ()),
        retry_failed=retry_failed,
        allow_partial=allow_partial,
        stream=stream,
        limit=limit,
        engine=engine,
        settings=settings(fit, intervals),
    )
    from harness.leaderboard.render import render
    from harness.run.progress import reporter

    cells = run_all(request, reporter(quiet=quiet, json_log=json_log))
    typer.echo(render(cells), nl=False)
    for line in (lacking := shortfalls(request, cells)):
        typer.echo(printable(line), err=True)
    if lacking:
        raise typer.Exit(1)


@app.command()
def table(
    output: Output = Path("results"),
    form: Annotated[str, typer.Option("--format", help="markdown, csv, latex or html.")] = "markdown",
    reported: Annotated[bool, typer.Option(help="Show published SRCC beside the measured one.")] = False,
) -> None:
    """Rebuild leaderboard.csv and leaderboard.md from the stored results and print the table."""
    from harness.leaderboard.render import render
    from harness.results.store import Store, StoreError, no_results
    from harness.run.runner import write_tables

    store = Store(output)
    cells = store.cells()
    if not cells:
        raise StoreError(no_results(output))
    text = render(cells, form, with_reported=reported)
    write_tables(store)  # before it is printed: the reader of a pipe may be gone
    typer.echo(text, nl=False)


@app.command()
def report(
    output: Annotated[Path, typer.Option(help="Folder of the report; an earlier report there is replaced.")] = Path(
        "site"
    ),
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Where pictures come from: name, FOLDER or NAME=FOLDER; repeatable."),
    ] = None,
    include: Include = None,
    draws: Annotated[
        int, typer.Option(min=0, help="Random sign patterns of the tests, at least; 0: no significance.")
    ] = 2000,
    maps: Annotated[
        str | None,
        typer.Option(help="Weights (lite) for quality maps of the pictures: point at a picture, or press M."),
    ] = None,
) -> None:
    """Write a self-contained HTML report of the stored results."""
    from harness.report import write_report

    page = write_report(results, output, datasets=dataset or (), include=include or (), draws=draws, maps=maps)
    typer.echo(printable(page))


app.command()(check)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="datasets or scorers")] = "datasets",
    include: Include = None,
    available: Annotated[
        bool, typer.Option(help="Say which scorers can start here without a download, and why others cannot.")
    ] = False,
) -> None:
    """Print what is known by name."""
    from harness.listing import dataset_table, scorer_table

    tables = {"datasets": lambda: dataset_table(include or ()), "scorers": lambda: scorer_table(available)}
    if what not in tables:
        raise QualiCLIPError(f"list what? datasets or scorers, not {what!r}")
    typer.echo(tables[what]())


data = typer.Typer(help="Check a dataset before scoring.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("check")
def data_check(
    dataset: Annotated[str, typer.Argument(help="Name, FOLDER or NAME=FOLDER.")],
    include: Include = None,
    stream: Annotated[bool, typer.Option(help="Read a remote dataset as it comes, without keeping it.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
) -> None:
    """Look for duplicates, unreadable images, near-duplicates between splits; print sizes and opinions.

    The exit code is 1 if something needs attention.
    """
    from harness.data.inspect import inspect, report
    from harness.data.open import open_dataset
    from harness.data.spec import catalogue

    images = open_dataset(dataset, catalogue(include or ()), allow_partial=True, stream=stream)
    found = inspect(images, workers)
    typer.echo(report(found))
    raise typer.Exit(0 if found.sound else 1)


weights = typer.Typer(help="Locate and download the files of a metric.", no_args_is_help=True)
app.add_typer(weights, name="weights")
Metric = Annotated[str, typer.Argument(help="A name from 'iqa-harness list scorers'.")]


@weights.command("path")
def weights_path(name: Metric) -> None:
    """Print the paths of a metric's files, up to the first missing one, without downloading any."""
    _print_files(name, fetch=False)


@weights.command("fetch")
def weights_fetch(name: Metric) -> None:
    """Download the files of a metric, unless they are already there; print their paths."""
    _print_files(name, fetch=True)


def _print_files(name: str, *, fetch: bool) -> None:
    from harness.scorers.downloads import weight_files

    for path in weight_files(name, fetch=fetch):
        typer.echo(printable(path))


@app.command("fit-niqe")
def fit_niqe_(
    folder: Annotated[Path, typer.Argument(help="Pristine photographs; searched recursively.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")] = Path("niqe_own.mat"),
) -> None:
    """Fit NIQE to your own pristine photographs."""
    from harness.scorers.niqe_fit import fit_niqe
    from qualiclip_plugin.utils.images import images_in
    from qualiclip_plugin.utils.progress import track

    paths = images_in([folder])
    patches = fit_niqe(track(paths, "Reading photographs", len(paths)), output)
    typer.echo(f"{printable(output)}: fitted to {patches} patches; use it as")
    typer.echo(f"--scorer niqe@pretrained_model_path={printable(output)},opinion_aware=false")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Name of a scorer; without names all are compared.")] = "",
    second: Annotated[str, typer.Argument(help="Name of another.")] = "",
    output: Output = Path("results"),
    draws: Annotated[int, typer.Option(min=100, help="Random sign patterns of the test, at least.")] = 2000,
) -> None:
    """Test two scorers against each other on every dataset that has stored scores of both.

    Without names: every two scorers of each dataset, with p adjusted for all pairs, on the images that all have
    scored. The outcome is stored in comparisons.csv and in the folder comparisons of the results: a report can then
    show it without the labels, which often may not be shared.
    """
    from harness.api import compare as compare_scorers
    from harness.api import compare_all

    if first and not second:
        raise QualiCLIPError(f"compare {first} with which scorer? Give two names, or none to compare all")
    options: dict[str, Any] = {"output": output, "draws": draws}
    frame = compare_scorers(first, second, **options) if first else compare_all(**options)
    if frame.empty:
        which = f"both {first} and {second}" if first else "two scorers, with labels or tests of earlier"
        raise QualiCLIPError(f"{output}: no dataset has stored scores of {which}")
    shown = frame.astype(object).where(frame.notna(), None)
    shown = shown.rename(columns={"first": first, "second": second}) if first else shown
    for column in (name for name in shown.columns if name.split("_")[0] == "p"):
        shown[column] = [_p_value(value) for value in shown[column]]
    shown = shown.map(lambda value: printable(value) if isinstance(value, str) else value)
    typer.echo(shown.to_markdown(index=False, floatfmt=".4f", missingval=""))


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 1e-4 else "< 1e-4"


def main() -> None:
    """Run the command line; see :func:`qualiclip_plugin.utils.terminal.run`."""
    run_command(app, "iqa-harness")
