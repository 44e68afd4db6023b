"""Start a scorer by its name, or say why it cannot start."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.error import URLError

from harness.data.network import hub_reachable, offline, without_network
from harness.scorers.kinds import Scorer, kept_running, start_callable, start_command, start_ours, start_pyiqa
from harness.scorers.names import COMMAND, DECLARATIONS, ScorerError, facts, is_ours, parse_name, split_label
from qualiclip_plugin.utils.errors import QualiCLIPError
from qualiclip_plugin.utils.extras import advice

_ONE_AT_A_TIME = threading.RLock()
"""Standard output and the Hub's setting belong to all threads: two that put them back could leave them changed."""


def create_scorer(name: str, *, device: str = "auto", precision: str = "fp32") -> Scorer:
    """Start a scorer.

    Args:
        name: ``[LABEL=]NAME[@option=value,...]``; the scorer is called by its label.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``fp32``, ``fp16`` or ``bf16``; the QualiCLIP metrics only.

    Raises:
        ConfigError: The device is none of this machine.
        ScorerError: Unknown name or option, weights that cannot be obtained, a missing dependency: the reason.
    """
    from qualiclip_plugin.scoring.local import check_device

    label, name = split_label(name)
    base, options = parse_name(name)
    facts(name)
    options = {key: value for key, value in options.items() if key not in DECLARATIONS}
    chosen = check_device(device)
    try:
        with _ONE_AT_A_TIME, _silent(), offline(not hub_reachable()), kept_running(name):
            scorer = _started(name, base, options, chosen, precision)
    except ScorerError:
        raise
    except QualiCLIPError as error:
        raise ScorerError(*error.args) from error
    except Exception as error:
        raise ScorerError(_why_not(error)) from error
    return scorer if label == name else replace(scorer, name=label)


def _started(name: str, base: str, options: dict[str, Any], device: str, precision: str) -> Scorer:
    if is_ours(base):
        return start_ours(name, base, options, device, precision)
    if base.startswith(COMMAND):
        return start_command(name, base, options)
    if ":" in base:
        return start_callable(name, base, options, device)
    return start_pyiqa(name, base, options, device)


@dataclass(frozen=True)
class Start:
    """Whether a scorer can start here.

    Attributes:
        reason: Why it cannot; empty if it can.
        parameters: How many it has; none if unknown.
    """

    name: str
    reason: str = ""
    parameters: int | None = None


def availability(names: Iterable[str]) -> Iterator[Start]:
    """Whether scorers can start here as things are, without any download."""
    for name in names:
        try:
            with _ONE_AT_A_TIME, without_network():
                started = create_scorer(name, device="cpu")
        except ScorerError as error:
            yield Start(name, str(error))
        else:
            yield Start(name, parameters=started.parameters)


def _why_not(error: Exception) -> str:
    """What keeps a metric from starting, in words; libraries raise their own errors where weights are missing."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    absent = "its weights are not on this machine and cannot be downloaded"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}"
    if isinstance(error, URLError):
        return f"{absent}: {error.reason}"
    hub = isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
    if hub or "couldn't connect to" in str(error) or "make sure you don't have a local directory" in str(error):
        return absent
    if isinstance(error, ModuleNotFoundError) and error.name:
        return advice(error) or f"it needs the package {error.name}, which is not installed"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    # pyiqa prints where it loads weights from; standard output belongs to the table.
    with contextlib.redirect_stdout(io.StringIO()):
        yield
