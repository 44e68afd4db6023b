"""Command line: ``qualiclip score | map | gallery | degrade | train | export | weights | doctor``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qualiclip_plugin.training.cli import train_command
from qualiclip_plugin.utils.errors import ConfigError, ImageError, disk_errors
from qualiclip_plugin.utils.progress import track
from qualiclip_plugin.utils.shown import printable
from qualiclip_plugin.utils.stop_signal import SIGNAL_EXITS, StopSignal
from qualiclip_plugin.utils.terminal import Version, run

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from qualiclip_plugin.models.qualiclip import QualiCLIP
    from qualiclip_plugin.scoring.local import ScoredImage
    from qualiclip_plugin.scoring.ray_engine import ScoreRequest
    from qualiclip_plugin.scoring.unfinished import UnfinishedScores

FAILED = 1
"""Exit code: some images have no score."""

RAY_PANEL = "With --engine ray"

app = typer.Typer(
    help="Image quality without a reference and without human scores: QualiCLIP (arXiv 2403.11176).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
weights_app = typer.Typer(help="List, download and locate weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.command("train")(train_command)


class Scale(str, Enum):
    """Choices of the factor on the similarities."""

    pyiqa = "pyiqa"
    authors = "authors"


class Engine(str, Enum):
    """Who scores: this process, or a pool of workers."""

    local = "local"
    ray = "ray"


class GraphFormat(str, Enum):
    """What a graph is written for."""

    onnx = "onnx"
    torch_export = "torch-export"


Weights = Annotated[
    str, typer.Option(envvar="QUALICLIP_WEIGHTS", help="A name from 'qualiclip weights list', or a file.")
]
WeightName = Annotated[str, typer.Argument(help="A name from 'qualiclip weights list'.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
ScaleOption = Annotated[Scale, typer.Option(help="Factor on the similarities: the one pyiqa uses or the authors'.")]
Background = Annotated[str, typer.Option(help="Colour behind transparent pixels: white, '#rrggbb', 'rgb(r,g,b)'.")]
Exif = Annotated[bool, typer.Option(help="Apply the EXIF rotation.")]
Icc = Annotated[bool, typer.Option(help="Convert the colours of an ICC profile to sRGB.")]
MaxPixels = Annotated[
    int, typer.Option(min=0, help="Larger images are refused before they are decoded; 0: 201 million.")
]


@app.callback()
def _root(version: Version = False) -> None:
    """Options before the command; each does its work in its own callback."""


@app.command()
def score(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files, folders (recursive), patterns; with --engine ray also s3://... and Parquet.",
        ),
    ],
    weights: Weights = "lite",
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    runtime: Annotated[
        str,
        typer.Option(
            envvar="QUALICLIP_RUNTIME",
            help="What computes: eager, openvino, cuda; auto: openvino on a CPU if installed, else eager.",
        ),
    ] = "auto",
    scale: ScaleOption = Scale.pyiqa,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Most images of one size in a batch; 0: 1 on the CPU, 16 elsewhere.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Threads that decode ahead; with a GPU, from 2000 files, processes.",
            show_default="2; with a GPU one for each core",
        ),
    ] = None,
    attributes: Annotated[bool, typer.Option("--attributes", help="Add a column for every prompt pair.")] = False,
    background: Background = "white",
    exif: Exif = True,
    icc: Icc = True,
    max_pixels: MaxPixels = 0,
    tile_pixels: Annotated[
        int,
        typer.Option(min=0, help="Larger images are computed in tiles of so many pixels; 0: by the image's size."),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write the table to a .csv, .jsonl or .parquet file; with --engine ray: folder."),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Also write a page that shows the pictures, worst first, to this folder.")
    ] = None,
    maps: Annotated[
        bool,
        typer.Option("--maps", help="With --gallery: also show where pictures are bad; this takes longer."),
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="local: this process. ray: all GPUs or cores of a Ray cluster, resumable.")
    ] = Engine.local,
    images_per_shard: Annotated[
        int, typer.Option(min=1, help="Images in one file of scores.", rich_help_panel=RAY_PANEL)
    ] = 500,
    column: Annotated[
        str | None, typer.Option(help="Column of the images in Parquet files.", rich_help_panel=RAY_PANEL)
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(min=0, help="Workers; 0: one for each GPU, else for each core.", rich_help_panel=RAY_PANEL)
    ] = 0,
    ray_threads: Annotated[
        int, typer.Option(min=1, help="Torch threads and cores of a worker.", rich_help_panel=RAY_PANEL)
    ] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Score shards with failures again.", rich_help_panel=RAY_PANEL)
    ] = False,
) -> None:
    """Score images: higher is better, from 0 to 1.

    Whole images are scored, neither resized nor cropped. The table goes to standard output, as tab-separated text
    unless that is a terminal. An image that cannot be scored is a row with the reason. After a stop, the same command
    continues a run with --output.

    With --engine ray the table goes to Parquet files in the folder --output, and the path of the folder to standard
    output; the same command scores what is still missing there.

    Exit code: 0 all images have a score, 1 some have none, 2 the command could not start.
    """
    from qualiclip_plugin.utils.images import MAX_PIXELS, images_in

    colour, max_pixels = _colour(background), max_pixels or MAX_PIXELS
    if maps and gallery is None:
        raise ConfigError("--maps belongs to --gallery; 'qualiclip map' writes maps alone")
    from qualiclip_plugin.scoring.ray_engine import ScoreRequest, score_on_ray
    from qualiclip_plugin.utils.decode_ahead import DECODERS

    threads = DECODERS if workers is None else workers

    reading: dict[str, Any] = {"exif": exif, "icc": icc, "background": colour, "max_pixels": max_pixels}
    request = ScoreRequest(
        weights,
        precision=precision,
        scale=scale.value,
        attributes=attributes,
        batch_size=batch_size,
        column=column,
        images_per_shard=images_per_shard,
        runtime=runtime,
        tile_pixels=tile_pixels,
        **reading,
    )
    if engine is Engine.ray:
        if gallery is not None:
            raise ConfigError("--gallery shows files of this machine: it does not go with --engine ray")
        with _shard_progress() as advance:
            summary = score_on_ray(
                paths,
                _shard_folder(output),
                request,
                device=device,
                workers=ray_workers,
                threads=ray_threads,
                decoders=threads,
                retry_failed=retry_failed,
                advance=advance,
            )
        typer.echo(printable(summary["scores"]))
        _exit_if_failed(summary["failed"], summary["images"])
        return
    _refuse_ray_options(context, paths)
    from qualiclip_plugin.runtimes import AUTO
    from qualiclip_plugin.scoring.local import check_device
    from qualiclip_plugin.scoring.table import check_output

    # What Pillow warns of is an error or a note in the table.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if output is not None:
        check_output(output)
    if gallery is not None:
        from qualiclip_plugin.gallery import check_gallery

        check_gallery(gallery)
    files = images_in(paths)
    if gallery is not None and any(
        Path(os.path.abspath(file)).is_relative_to(os.path.abspath(gallery)) for file in files
    ):
        raise ConfigError(f"{printable(gallery)}: lies among the images, and its thumbnails would be scored")
    device = check_device(device)
    model = request.load(device)
    if runtime == AUTO:
        request = replace(request, runtime=model.runtime)
        typer.echo(f"runtime: {model.runtime}", err=True)
    frame = _score_here(files, request, model, device, workers, output)
    try:
        if gallery is not None:
            _show(frame, gallery, files, threads, model=model if maps else None, **reading)
    finally:
        _print_table(frame)
    _exit_if_failed(int(frame["error"].notna().sum()), len(frame))


def _score_here(
    files: Sequence[Path],
    request: ScoreRequest,
    model: QualiCLIP,
    device: str,
    workers: int | None,
    output: Path | None,
) -> DataFrame:
    """The table, which is written before anything is printed: the reader of a pipe may be gone."""
    from qualiclip_plugin.scoring.table import to_frame, write_scores
    from qualiclip_plugin.scoring.unfinished import rows_of
    from qualiclip_plugin.utils.decode_ahead import how_to_decode

    decoders, processes = how_to_decode(device, len(files), workers)
    score = partial(request.score, model=model, decoders=decoders, processes=processes)
    with _unfinished(output, request, device) as unfinished, StopSignal() as stop:
        rows = score(files) if unfinished is None else rows_of(files, unfinished, score)
        done = _until(stop, track(rows, "scoring", len(files), stays=True))
        frame = to_frame(done, model.attributes if request.attributes else ())
        if stop.name and len(frame) < len(files):
            _end_stopped(stop.name, frame, len(files), output)
        if unfinished is not None and output is not None:
            write_scores(frame, output)
            unfinished.remove()
    return frame


def _show(
    frame: DataFrame,
    folder: Path,
    files: Sequence[Path] | None,
    workers: int,
    large: int | None = None,
    model: QualiCLIP | None = None,
    **choices: Any,
) -> None:
    """Write the gallery and say where it is."""
    from qualiclip_plugin.gallery import LARGE_PICTURES, write_gallery
    from qualiclip_plugin.utils.images import read_image

    read, large = partial(read_image, **choices), LARGE_PICTURES if large is None else large
    page = write_gallery(frame, folder, files=files, read=read, large=large, workers=max(workers, 1), model=model)
    typer.echo(f"gallery: {printable(page)}", err=True)


def _unfinished(
    output: Path | None, request: ScoreRequest, device: str
) -> AbstractContextManager[UnfinishedScores | None]:
    """Rows that an interrupted run left; what is made of them is said."""
    if output is None:
        return nullcontext()
    import torch

    from qualiclip_plugin.scoring.ray_engine import identify
    from qualiclip_plugin.scoring.ray_pool import Pool
    from qualiclip_plugin.scoring.unfinished import UnfinishedScores
    from qualiclip_plugin.utils.shown import portable

    identity = identify(request, Pool(1, device, torch.get_num_threads()))
    unfinished = UnfinishedScores(output, {**identity, "folder": portable(os.getcwd())})
    path = printable(unfinished.path)
    if unfinished.changed:
        typer.echo(f"{path}: was of another run ({printable('; '.join(unfinished.changed))}); begun anew", err=True)
    elif len(unfinished):
        typer.echo(f"{path}: {len(unfinished)} rows of an interrupted run are taken up", err=True)
    return unfinished


def _until(stop: StopSignal, rows: Iterable[ScoredImage]) -> Iterator[ScoredImage]:
    for row in rows:
        yield row
        if stop.received:
            return


def _end_stopped(signal: str, frame: DataFrame, images: int, output: Path | None) -> NoReturn:
    if output is None:
        _print_table(frame)
    advice = "" if output is None else "; the same command goes on from there"
    typer.echo(f"stopped by {signal}: {len(frame)} of {images} images are done{advice}", err=True)
    raise typer.Exit(SIGNAL_EXITS[signal])


def _exit_if_failed(failed: int, images: int) -> None:
    if failed:
        typer.echo(f"{failed} of {images} images have no score", err=True)
        raise typer.Exit(FAILED)


def _refuse_ray_options(context: typer.Context, paths: Iterable[str]) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("images_per_shard", "column", "ray_workers", "ray_threads", "retry_failed")
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    ]
    if addresses := [path for path in paths if "://" in path]:
        from qualiclip_plugin.scoring.storage import without_secrets

        given += map(without_secrets, addresses)
    if given:
        raise ConfigError(f"only with --engine ray: {', '.join(given)}")


def _shard_folder(output: Path | None) -> Path:
    from qualiclip_plugin.scoring.table import WRITERS

    if output is None or output.suffix.lower() in WRITERS or output.is_file():
        raise ConfigError("--engine ray writes many files: give --output a folder")
    return output


@contextmanager
def _shard_progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=None)
        yield lambda images, total: progress.update(task, advance=images, total=total)


def _colour(text: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError as error:
        raise ConfigError(f"unknown colour {text!r}: give a name, '#rrggbb' or 'rgb(r,g,b)'") from error
    if alpha:
        raise ConfigError(f"colour {text!r} must be opaque: it lies behind everything")
    return red, green, blue


def _print_table(frame: DataFrame) -> None:
    from qualiclip_plugin.scoring.table import plain_table, rich_table

    if not sys.stdout.isatty():
        typer.echo(plain_table(frame))
        return
    from rich.console import Console

    Console().print(rich_table(frame))


@app.command("map")
def map_images(
    paths: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders (recursive), patterns.")],
    output: Annotated[Path, typer.Option(help="Folder for NAME.png, to view, and NAME.npy, the raw map.")],
    attribute: Annotated[
        str | None, typer.Option(help="Map one prompt pair instead of the score, for example sharp_image.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the windows that are scored, in pixels. [default: by the weights]"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels between windows. [default: three quarters of a window]")
    ] = None,
    weights: Weights = "lite",
    device: Device = "auto",
    max_pixels: MaxPixels = 0,
) -> None:
    """Show where images are good and where they are bad; print the path of every picture.

    Exit code: 0 every image has a map, 1 some have none, 2 the command could not start.
    """
    from qualiclip_plugin.scoring.local import check_device
    from qualiclip_plugin.scoring.map_files import attribute_index, check_names, map_of_file, write_map
    from qualiclip_plugin.utils.images import MAX_PIXELS, images_in
    from qualiclip_plugin.weights.loading import load_model

    files = images_in(paths)
    check_names(files)
    model = load_model(weights, device=check_device(device))
    attribute_index(model, attribute)
    failed = 0
    for file in files:
        try:
            found = map_of_file(
                file, model, attribute=attribute, window=window, stride=stride, max_pixels=max_pixels or MAX_PIXELS
            )
            with disk_errors(output, ConfigError):
                typer.echo(printable(write_map(found, output, file.name)[1]))
        except ImageError as error:
            failed += 1
            typer.echo(printable(str(error)), err=True)
    _exit_if_failed(failed, len(files))


@app.command("gallery")
def gallery_command(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="What 'qualiclip score --output' wrote.")],
    output: Annotated[Path, typer.Option(help="Folder of the page; an earlier gallery there is replaced.")],
    large: Annotated[
        int | None,
        typer.Option(min=0, help="How many pictures, worst first, have a large view. [default: 1000]"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read pictures.")] = 2,
    background: Background = "white",
    exif: Exif = True,
    icc: Icc = True,
    max_pixels: MaxPixels = 0,
) -> None:
    """Write a page that shows scored pictures, worst first: view, filter, mark, and save lists of names.

    It opens from the folder, without a server and without a network. Relative paths in SCORES start from the current
    folder.
    """
    from qualiclip_plugin.gallery import check_gallery
    from qualiclip_plugin.scoring.table import read_scores
    from qualiclip_plugin.utils.images import MAX_PIXELS

    check_gallery(output)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    choices: dict[str, Any] = {
        "exif": exif,
        "icc": icc,
        "background": _colour(background),
        "max_pixels": max_pixels or MAX_PIXELS,
    }
    _show(read_scores(scores), output, None, workers, large, **choices)


@app.command()
def degrade(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.")],
    distortion: Annotated[str | None, typer.Option(help="Kind of degradation, for example jpeg.")] = None,
    level: Annotated[int, typer.Option(min=0, help="0 unchanged, 1 mild, ... 5 severe.")] = 3,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the random draw (noise, positions, direction).")
    ] = 0,
    table: Annotated[str, typer.Option(help="Table of kinds: default, paper, camera or arniqa.")] = "default",
    output: Annotated[Path | None, typer.Option(help="Where to write the degraded picture (lossless).")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write pages of all kinds (or of --distortion) at all levels with their scores instead."),
    ] = None,
    weights: Annotated[
        str, typer.Option(envvar="QUALICLIP_WEIGHTS", help="Of the scores on --sheet, as for 'qualiclip score'.")
    ] = "lite",
) -> None:
    """Degrade a picture as the training does; print the path of the written file."""
    from qualiclip_plugin.distortions.contact_sheet import contact_sheet, degrade_file
    from qualiclip_plugin.utils.images import read_image

    if sheet is not None and output is not None:
        raise ConfigError("--sheet and --output are two different pictures: give one of them")
    with disk_errors(sheet or output or image.name, ConfigError):
        if sheet is not None:
            kinds = None if distortion is None else [distortion]
            pixels, scorer = read_image(image), _scorer(weights)
            for page in contact_sheet(pixels, sheet, kinds, seed=seed, table=table, score=scorer):
                typer.echo(printable(page))
            return
        if distortion is None:
            raise ConfigError("give --distortion NAME for one picture or --sheet FILE for all kinds and levels")
        typer.echo(printable(degrade_file(image, distortion, level, seed=seed, output=output, table=table)))


def _scorer(weights: str) -> Callable[[Tensor], Tensor]:
    """Images (N, 3, H, W) -> scores (N,)."""
    import torch

    from qualiclip_plugin.weights.loading import load_model

    model = load_model(weights)

    def score(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)[:, 0]

    return score


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, for example model.onnx.")],
    weights: Weights = "lite",
    form: Annotated[GraphFormat, typer.Option("--format", help="For onnxruntime, or torch.export.load.")] = (
        GraphFormat.onnx
    ),
    scale: ScaleOption = Scale.pyiqa,
) -> None:
    """Write the model as a graph that runs without this package: images of any size in, scores out.

    Input: images (N, 3, H, W), RGB in [0, 1], float32, sides from 64 pixels. Output: scores (N, 1).
    """
    from qualiclip_plugin.runtimes.export import EXPORTERS, check_name
    from qualiclip_plugin.weights.loading import load_model

    check_name(path, form.value)
    with disk_errors(path, ConfigError):
        EXPORTERS[form.value](load_model(weights, scale=scale.value), path)
    typer.echo(printable(path))


@app.command()
def doctor() -> None:
    """Print what this machine has: processor, GPU, threads, caches, weights, extras."""
    from qualiclip_plugin.doctor import facts

    for name, state in facts():
        typer.echo(printable(f"{name}: {state}"))


@weights_app.command("list")
def list_weights() -> None:
    """Print every known name with its licence and where its file is."""
    from rich.console import Console
    from rich.table import Table

    from qualiclip_plugin.weights.loading import load_cards

    columns = ("name", "state", "human scores", "licence", "description")
    rows = [
        (
            card.name,
            "in the package" if card.packaged else "fetched" if card.path.exists() else "not fetched",
            "yes" if card.opinion_aware else "no",
            card.licence,
            card.description,
        )
        for card in load_cards().values()
    ]
    if not sys.stdout.isatty():
        typer.echo("\n".join("\t".join(row) for row in (columns, *rows)))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@weights_app.command("fetch")
def fetch_weights(name: WeightName) -> None:
    """Download and verify a weight file, unless it is already there; print its path."""
    from qualiclip_plugin.weights.loading import fetch

    typer.echo(printable(fetch(name)))


@weights_app.command("path")
def weights_path(name: WeightName) -> None:
    """Print the path of a weight file, without downloading it."""
    from qualiclip_plugin.weights.loading import get_card

    typer.echo(printable(get_card(name).path))


def main() -> None:
    """Run the command line; see :func:`qualiclip_plugin.utils.terminal.run`."""
    run(app, "qualiclip")
