"""``qualiclip train``: the command around :mod:`qualiclip_plugin.training.trainer`."""

from __future__ import annotations

from typing import Annotated

import typer

from qualiclip_plugin.utils.stop_signal import SIGNAL_EXITS


def train_command(
    photos: Annotated[
        str,
        typer.Option(
            help="Pristine photographs: a folder, a Hugging Face dataset, or 'skimage' for the ones in scikit-image.",
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder of the run.")],
    config: Annotated[str, typer.Option(help="adapt, laptop, lite, paper, or a YAML file.")] = "laptop",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as steps=200; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs too.")] = False,
) -> None:
    """Train QualiCLIP on your own pristine photographs; no human scores are needed.

    The result is OUTPUT/model.safetensors; use its path in place of a weight name. A stopped run (Ctrl-C,
    SIGTERM, a crash) continues with --resume as if it had not been stopped.
    """
    from qualiclip_plugin.training.config import load_config

    # A misspelt setting is told before the trainer's imports take their seconds.
    loaded = load_config(config, settings or ())
    from qualiclip_plugin.training.trainer import train

    result = train(loaded, photos, output, resume=resume, tensorboard=tensorboard)
    if result.stopped_by:
        raise typer.Exit(SIGNAL_EXITS.get(result.stopped_by, 1))
