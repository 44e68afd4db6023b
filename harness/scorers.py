"""What is compared: anything that turns images into one number each, with a declared direction.

A name is ``NAME[@option=value,...]`` where NAME is a QualiCLIP metric of this project, any no-reference
metric of pyiqa, ``module:function`` or ``cmd:COMMAND``. A scorer is identified by everything that may change
its numbers, so that stored scores of two versions never mix.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import hashlib
import io
import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit

from qualiclip_plugin.documents import parse_yaml
from qualiclip_plugin.errors import ConfigError, QualiCLIPError, did_you_mean
from qualiclip_plugin.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_SCORERS = ("qualiclip-lite", "piqe", "entropy", "niqe", "clipiqa", "qualiclip")
OURS = {"qualiclip": "official", "qualiclip-lite": "lite", "qualiclip-clip": "clip"}
"""This project's metrics: the weight name that each one loads."""

COMMAND = "cmd:"
COMMAND_BATCH_PIXELS = 32_000_000
"""Starting a process for every image would cost more than most scorers do."""

DECLARATIONS = ("opinion_aware", "trained_on", "licence")
"""Options that say what is known of a scorer, of any kind, and are not given to it; datasets are joined by ``+``."""

OTHER_WEIGHTS = frozenset({"pretrained", "pretrained_model_path", "model_type", "model_name", "backbone"})
"""Options of pyiqa's metrics with which what is known of the metric no longer holds."""

NOT_PER_IMAGE = frozenset({"fid", "sfid", "fid_dinov2", "inception_score"})
"""Metrics that pyiqa counts as no-reference but that score a set of images as a whole."""

_PACKAGE = Path(__file__).parent.parent / "qualiclip_plugin"
_READING_CODE = ("images.py",)
_MODEL_CODE = (
    "attention_pool.py",
    "backbones.py",
    "checkpoint.py",
    "inference.py",
    "model.py",
    "prompt_learner.py",
    "prompts.py",
    "runtimes.py",
    "tiling.py",
    "towers.py",
    "tracing.py",
)


class ScorerError(QualiCLIPError):
    """A scorer is unknown, or cannot start here."""


@dataclass(frozen=True)
class Facts:
    """What is known of a scorer without starting it.

    Attributes:
        opinion_aware: Whether human opinion scores entered its training; none where unknown.
        trained_on: Datasets whose opinions it has seen; ``?`` where not all are known.
        licence: Terms of the weights, where known.
    """

    opinion_aware: bool | None = None
    trained_on: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class Scorer:
    """A scorer that has started.

    Attributes:
        name: As asked for, options included.
        lower_better: Its declared direction.
        score: Images (N, 3, H, W), RGB in [0, 1], to scores (N,).
        identity: Everything that may change a score.
        device: Where it runs, in words.
        facts: What is known of its training.
        parameters: Number of parameters; none where unknown.
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


def create_scorer(name: str, *, device: str = "auto", precision: str = "fp32") -> Scorer:
    """Start a scorer.

    Args:
        name: ``NAME[@option=value,...]``.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``fp32``, ``fp16`` or ``bf16``; the QualiCLIP metrics only.

    Raises:
        ScorerError: Unknown name or option, weights that cannot be had, a missing dependency: the reason.
    """
    base, options = parse_name(name)
    facts(name)
    options = {key: value for key, value in options.items() if key not in DECLARATIONS}
    chosen = pick_device(device)
    try:
        with _silent(), _offline(not hub_reachable()):
            if base in OURS or base.startswith("qualiclip+"):
                return _ours(name, base, options, chosen, precision)
            if base.startswith(COMMAND):
                return _command(name, base, options)
            if ":" in base:
                return _callable(name, base, options, chosen)
            return _pyiqa(name, base, options, chosen)
    except ScorerError:
        raise
    except QualiCLIPError as error:
        raise ScorerError(str(error)) from error
    except Exception as error:
        raise ScorerError(_why_not(error)) from error


def _why_not(error: Exception) -> str:
    """What keeps a metric from starting, in words; libraries raise their own errors where weights are missing."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    absent = "its weights are not on this machine and cannot be downloaded"
    if isinstance(error, URLError):
        return f"{absent}: {error.reason}"
    hub = isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
    if hub or "couldn't connect to" in str(error) or "make sure you don't have a local directory" in str(error):
        return absent
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it needs the package {error.name}, which is not installed"
    return f"{type(error).__name__}: {error}"


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME@option=value,...`` into the name and its options; values are read as YAML scalars.

    Raises:
        ScorerError: An option without ``=``.
    """
    base, _, text = name.partition("@")
    if name.startswith(COMMAND):
        # A command may hold an @ of its own; options stand behind the last one.
        base, _, text = name.rpartition("@")
        if "=" not in text or not base:
            base, text = name, ""
    options = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ScorerError(f"{name}: {item!r} is not option=value")
        try:
            options[key.strip()], _ = parse_yaml(value, name)
        except ConfigError as error:
            raise ScorerError(str(error)) from error
    return base, options


def facts(name: str) -> Facts:
    """What is known of a scorer's training, from its options, its card or ``scorers.csv``, in this order.

    Raises:
        ScorerError: The options contradict each other.
    """
    base, options = parse_name(name)
    return _declared(name, _known(base, options), options)


def _known(base: str, options: Mapping[str, Any]) -> Facts:
    if base in OURS or base.startswith("qualiclip+"):
        from qualiclip_plugin.weights import load_cards

        card = load_cards().get(str(options.get("weights", OURS.get(base, base))))
        return Facts(card.opinion_aware, card.seen, card.licence) if card else Facts()
    # Other weights were trained on something else.
    return Facts() if options.keys() & OTHER_WEIGHTS else _facts_table().get(base, Facts())


def _declared(name: str, known: Facts, options: Mapping[str, Any]) -> Facts:
    aware, licence = options.get("opinion_aware", known.opinion_aware), str(options.get("licence", known.licence))
    trained_on = tuple(filter(None, str(options.get("trained_on", "+".join(known.trained_on))).split("+")))
    if "trained_on" in options and "opinion_aware" not in options:
        aware = bool(trained_on)
    if not (aware is None or isinstance(aware, bool)) or (aware is False and trained_on):
        raise ScorerError(f"{name}: opinion_aware is true or false, and trained_on needs true")
    return Facts(aware, trained_on, licence)


def known_scorers() -> Mapping[str, Facts]:
    """Every scorer known by name: ours and pyiqa's no-reference metrics."""
    return {name: facts(name) for name in sorted({*OURS, *_pyiqa_names()})}


def lower_better(name: str) -> bool:
    """Declared direction of a scorer known by name; every metric of this project is higher-better."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return bool(DEFAULT_CONFIGS.get(parse_name(name)[0], {}).get("lower_better"))


def pick_device(device: str) -> str:
    """``auto`` becomes a GPU where there is one, else the CPU."""
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """A device in words, for the record."""
    import platform

    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def reading_code() -> str:
    """Fingerprint of the code that turns bytes into pixels."""
    return code_hash(_PACKAGE / name for name in _READING_CODE)


def code_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over Python sources; comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over all tensors and arrays that a network holds, registered or not."""
    import numpy as np
    import torch

    digest = hashlib.sha256()
    for prefix, module in network.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for name in sorted(held):
            value = held[name]
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            if isinstance(value, np.ndarray):
                digest.update(f"{prefix}.{name}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _ours(name: str, base: str, options: dict[str, Any], device: str, precision: str) -> Scorer:
    from qualiclip_plugin.weights import load_model

    settings = {"weights": OURS.get(base, base), "precision": precision, **options}
    model = load_model(device=device, **settings)
    weights = settings.pop("weights")
    identity = {
        "metric": base,
        "options": {**settings, "weights": Path(str(weights)).name},
        "code": code_hash(_PACKAGE / file for file in _MODEL_CODE),
        "weights": weights_hash(model),
        "device": device.split(":", maxsplit=1)[0],
        **_versions("torch", "open_clip_torch", "timm"),
        **(_versions("openvino") if settings.get("runtime") == "openvino" else {}),
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


def _pyiqa(name: str, base: str, options: dict[str, Any], device: str) -> Scorer:
    import pyiqa

    if base not in _pyiqa_names():
        hint = did_you_mean(base, known_scorers(), cutoff=0.4) or "; `iqa-harness list scorers` prints all"
        raise ScorerError(f"no scorer named {base!r}{hint}")
    with _only_tensors():
        metric = pyiqa.create_metric(base, device=device, **options)
    identity = {
        "metric": base,
        "options": {key: _by_content(value) for key, value in options.items()},
        "weights": weights_hash(metric.net),
        "device": device.split(":", maxsplit=1)[0],
        **_versions("pyiqa", "torch"),
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


@contextlib.contextmanager
def _only_tensors() -> Iterator[None]:
    """Make torch refuse weight files that want to run code, also where pyiqa asks for the opposite."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ScorerError("its weights were refused: loading them could run code") from error
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def _by_content(value: Any) -> Any:
    """A file by what it holds: where it lies is no part of a score."""
    return f"{Path(value).name} {sha256_file(value)}" if isinstance(value, str) and Path(value).is_file() else value


def _callable(name: str, base: str, options: dict[str, Any], device: str) -> Scorer:
    module_name, _, function_name = base.partition(":")
    module = import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ScorerError(f"{module_name} has no function {function_name!r}")
    direction = options.pop("lower_better", getattr(function, "lower_better", None))
    if not isinstance(direction, bool):
        raise ScorerError(f"{name}: declare its direction: {base}@lower_better=true or false")
    source = getattr(module, "__file__", None)
    identity = {
        "callable": base,
        "options": options,
        "code": code_hash([Path(source)]) if source else "",
        "device": device.split(":", maxsplit=1)[0],
        **_versions("torch"),
    }
    return Scorer(
        name=name,
        lower_better=direction,
        score=lambda images: function(images.to(device), **options),
        identity=identity,
        device=device_name(device),
        facts=facts(name),
    )


def _command(name: str, base: str, options: dict[str, Any]) -> Scorer:
    words = shlex.split(base.removeprefix(COMMAND))
    direction = options.get("lower_better")
    if not words or shutil.which(words[0]) is None:
        raise ScorerError(f"{name}: no program {words[0] if words else ''!r}")
    if not isinstance(direction, bool):
        raise ScorerError(f"{name}: declare its direction: {base}@lower_better=true or false")
    files = {Path(word).name: sha256_file(word) for word in words if Path(word).is_file()}
    return Scorer(
        name=name,
        lower_better=direction,
        score=lambda images: _run_command(words, images),
        identity={"command": [Path(word).name if Path(word).is_file() else word for word in words], "files": files},
        device="command",
        facts=facts(name),
        batch_pixels=COMMAND_BATCH_PIXELS,
    )


def _run_command(words: Sequence[str], images: Tensor) -> Tensor:
    """Give images as PNG files, read a JSON list of numbers, or an object file name -> number."""
    import torch
    from torchvision.utils import save_image  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{index:05d}.png")) for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            save_image(image, path)
        # The command is the user's own, from their command line.
        done = subprocess.run([*words, *paths], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ScorerError(f"{words[0]} ended with {done.returncode}: {last}")
    try:
        answer = json.loads(done.stdout)
        numbers = [answer[Path(path).name] for path in paths] if isinstance(answer, dict) else answer
        return torch.tensor(numbers, dtype=torch.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ScorerError(f"{words[0]} did not print a JSON list of numbers or an object by file name") from error


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


@dataclass(frozen=True)
class Start:
    """Whether a scorer can start here.

    Attributes:
        name: The scorer.
        reason: Why it cannot; empty where it can.
        parameters: How many it has; none where unknown.
    """

    name: str
    reason: str = ""
    parameters: int | None = None


def availability(names: Iterable[str]) -> Iterator[Start]:
    """Whether scorers can start here as things are, without any download."""
    for name in names:
        try:
            with _without_network():
                started = create_scorer(name, device="cpu")
        except ScorerError as error:
            yield Start(name, str(error))
        else:
            yield Start(name, parameters=started.parameters)


@cache
def hub_reachable() -> bool:
    """Whether the Hub's name resolves, asked once; behind a proxy it need not."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    # Without a network the Hub's client repeats every request for half a minute before it gives up.
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _without_network() -> Iterator[None]:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("none was tried")

    connect, resolve = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse  # type: ignore[method-assign, assignment]
    try:
        with _offline(True):
            yield
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, resolve  # type: ignore[method-assign]


def _no_grad(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    import torch

    from qualiclip_plugin.inference import exact_fp32

    # Metrics that crop at random then give one image the same score in every run.
    torch.manual_seed(0)
    with torch.no_grad(), exact_fp32():
        return network(images)


@cache
def _pyiqa_names() -> frozenset[str]:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    named = {name for name, row in DEFAULT_CONFIGS.items() if row.get("metric_mode") == "NR"}
    return frozenset(named - NOT_PER_IMAGE)


@cache
def _facts_table() -> Mapping[str, Facts]:
    known = {"yes": True, "no": False}
    with (Path(__file__).parent / "scorers.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Facts(known.get(row["opinion_aware"]), tuple(row["trained_on"].split()), row["licence"])
            for row in csv.DictReader(file)
        }


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # pyiqa prints where it loads weights from; standard output belongs to the table.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
