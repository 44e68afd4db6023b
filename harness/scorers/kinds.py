"""The kinds of scorers: this project's metrics, pyiqa's, functions and commands, each started and identified."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.scorers.commands import TIMEOUT, score_by_command
from harness.scorers.downloads import named_downloads
from harness.scorers.identity import SCORES_VERSION, by_content, code_hash, device_name, versions, weights_hash
from harness.scorers.names import COMMAND, OURS, Facts, ScorerError, facts, known_scorers, other_input, pyiqa_names
from harness.scorers.pyiqa_files import FLAG, checked_files
from harness.scorers.separable import filter_in_two_passes
from harness.scorers.sources import own_files
from qualiclip_plugin.utils.atomic import sha256_file
from qualiclip_plugin.utils.errors import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "version"
"""Option of functions and commands, not given to them: separates scores after changes that are not seen here."""
COMMAND_BATCH_PIXELS = 32_000_000
"""Starting a process for every image would cost more than most scorers do."""


@dataclass(frozen=True)
class Scorer:
    """A scorer that has started.

    Attributes:
        name: As asked for, options included.
        score: Images (N, 3, H, W), RGB in [0, 1], to scores (N,).
        identity: Everything that may change a score.
        parameters: Number of parameters; none if unknown.
        batches: Whether it accepts several images at once.
        batch_pixels: Most pixels in a batch; 0: by device.
    """

    name: str
    lower_better: bool
    score: Callable[[Tensor], Tensor]
    identity: Mapping[str, Any]
    device: str = "cpu"
    facts: Facts = field(default_factory=Facts)
    parameters: int | None = None
    batches: bool = True
    batch_pixels: int = 0


def start_ours(name: str, base: str, options: dict[str, Any], device: str, precision: str) -> Scorer:
    """A metric of this project."""
    from qualiclip_plugin.runtimes import RUNTIMES
    from qualiclip_plugin.weights.loading import load_model

    settings = {"weights": OURS.get(base, base), "precision": precision, **options}
    model = load_model(device=device, **settings)
    weights = settings.pop("weights")
    if "runtime" in settings:
        settings["runtime"] = model.runtime  # what `auto` stands for here
    identity = {
        "metric": base,
        "options": {**settings, "weights": Path(str(weights)).name},
        "scores_version": SCORES_VERSION,
        "weights": weights_hash(model),
        "device": device.split(":", maxsplit=1)[0],
        **versions("torch", "open_clip_torch", "timm"),
        **versions(*RUNTIMES[model.runtime].packages),
    }
    return Scorer(
        name=name,
        lower_better=False,
        score=lambda images: _no_grad(model, images.to(device)),
        identity=identity,
        device=device_name(device),
        facts=facts(name),
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        # One by one as `qualiclip score` does on a CPU, so that both give a file the same score to the last bit.
        batches=device != "cpu",
    )


def start_pyiqa(name: str, base: str, options: dict[str, Any], device: str) -> Scorer:
    """A no-reference metric of pyiqa."""
    import pyiqa

    if base not in pyiqa_names():
        if reason := other_input(base):
            raise ScorerError(reason)
        hint = did_you_mean(base, known_scorers(), cutoff=0.4) or "; `iqa-harness list scorers` prints all"
        raise ScorerError(f"no scorer named {base!r}{hint}")
    run_torchscript = options.pop(FLAG, False)
    if not isinstance(run_torchscript, bool):
        raise ScorerError(f"{name}: {FLAG} is true or false")
    with named_downloads(), checked_files(run_torchscript=run_torchscript) as programs:
        metric = pyiqa.create_metric(base, device=device, **options)
    if base == "ilniqe":
        filter_in_two_passes()
    identity = {
        "metric": base,
        "options": {key: by_content(value) for key, value in options.items()},
        "weights": weights_hash(metric.net),
        "device": device.split(":", maxsplit=1)[0],
        **({"torchscript": sorted(programs)} if programs else {}),
        **versions("pyiqa", "torch"),
    }
    return Scorer(
        name=name,
        lower_better=bool(metric.lower_better),
        score=lambda images: _no_grad(metric, images.to(device)),
        identity=identity,
        device=device_name(device),
        facts=facts(name),
        parameters=sum(tensor.numel() for tensor in metric.net.parameters()),
        # On a CPU batches gain nothing, and single images are what pyiqa's own numbers are made of.
        batches=device != "cpu" and _same_in_batches(metric, device),
    )


def start_callable(name: str, base: str, options: dict[str, Any], device: str) -> Scorer:
    """A function of the user's, images to scores: ``module:function``, found in the current folder too."""
    module_name, _, function_name = base.partition(":")
    with _current_folder_on_path(), kept_running(name):
        module = import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ScorerError(f"{module_name} has no function {function_name!r}")
    direction = _declared(options.pop("lower_better", getattr(function, "lower_better", None)), name, base)
    version, source = options.pop(VERSION, None), getattr(module, "__file__", None)
    identity = {
        "callable": base,
        "options": options,
        "code": code_hash(own_files(Path(source))) if source and source.endswith(".py") else "",
        **({VERSION: version} if version is not None else {}),
        "device": device.split(":", maxsplit=1)[0],
        **versions("torch"),
    }

    def score(images: Tensor) -> Tensor:
        with kept_running(name):
            return cast("Tensor", function(images.to(device), **options))

    _check_one_score_per_image(name, score)
    return Scorer(
        name=name,
        lower_better=direction,
        score=score,
        identity=identity,
        device=device_name(device),
        facts=facts(name),
    )


def _check_one_score_per_image(name: str, score: Callable[[Tensor], Any]) -> None:
    """Refuse a function that gives a batch one number: for single images, as of a folder of many sizes, it passes."""
    import torch

    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    try:
        shape = tuple(torch.as_tensor(score(images)).shape)
    except Exception:
        return  # it may need other images than these: what fails is named with its image
    if math.prod(shape) != len(images):
        raise ScorerError(f"{name}: gives scores of shape {shape} for 2 images; one number per image is needed")


@contextlib.contextmanager
def kept_running(name: str) -> Iterator[None]:
    """Turn the wish of a scorer's code to end the program into an error: a run must not end as if all were done.

    Raises:
        ScorerError: The code within the block called ``sys.exit``, or raised something else that ends a program.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ScorerError(f"{name} wanted to end the program ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    # An installed command has its own folder there instead.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def start_command(name: str, base: str, options: dict[str, Any]) -> Scorer:
    """A program of the user's: see :func:`harness.scorers.commands.score_by_command`."""
    words = shlex.split(base.removeprefix(COMMAND))
    if not words or shutil.which(words[0]) is None:
        raise ScorerError(f"{name}: no program {words[0] if words else ''!r}")
    direction = _declared(options.pop("lower_better", None), name, base)
    timeout, version = options.pop("timeout", TIMEOUT), options.pop(VERSION, None)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ScorerError(f"{name}: timeout is a number of seconds, not {timeout!r}")
    if options:
        raise ScorerError(f"{name}: a command takes no option {', '.join(options)}")
    files = [Path(word) for word in words if Path(word).is_file()]
    if not files and version is None:
        # Stored scores would stand for whatever the program becomes.
        raise ScorerError(f"{name}: say which version the program has: @{VERSION}=1, and another when it changes")
    scripts = [file for file in files if file.suffix == ".py"]
    beside = {script: own_files(script, [script.parent]) for script in scripts}
    imported = {script.name: code_hash(found) for script, found in beside.items() if len(found) > 1}
    return Scorer(
        name=name,
        lower_better=direction,
        score=lambda images: score_by_command(words, images, timeout),
        identity={
            "command": [Path(word).name if Path(word) in files else word for word in words],
            "files": {file.name: sha256_file(file) for file in files},
            **({"imported": imported} if imported else {}),
            **({VERSION: version} if version is not None else {}),
        },
        device="command",
        facts=facts(name),
        batch_pixels=COMMAND_BATCH_PIXELS,
    )


def _declared(direction: object, name: str, base: str) -> bool:
    if not isinstance(direction, bool):
        raise ScorerError(f"{name}: declare its direction: {base}@lower_better=true or false")
    return direction


def _same_in_batches(metric: Callable[[Tensor], Tensor], device: str) -> bool:
    """Whether a metric gives images the same scores together as alone; some mix a batch or fail on it."""
    import torch

    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        together = _no_grad(metric, images).flatten()
        alone = torch.cat([_no_grad(metric, image[None]).flatten() for image in images])
    except Exception:
        return False
    return together.shape == alone.shape and bool(torch.allclose(together, alone, rtol=1e-3, atol=1e-4))


def _no_grad(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    import torch

    from qualiclip_plugin.models.precision import exact_fp32

    own = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(own), torch.no_grad(), exact_fp32():
        # Metrics that crop at random then give one image the same score in every run.
        torch.manual_seed(0)
        return network(images)
