"""The files that pyiqa's metrics load, under the same rules as this project's own weights.

pyiqa loads whatever a file asks for, as the whole of Python or as TorchScript, and files come from options, a cache
or the network. While a metric starts here, only tensors are loaded, and TorchScript, which is a program,
is run only where it is one of OpenAI's CLIP files, by their SHA-256, or where the user asks for it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from collections.abc import Iterator
from functools import cache
from typing import IO, Any

from harness.scorers.names import ScorerError
from qualiclip_plugin.utils.atomic import sha256_stream
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.replacing import replaced

FLAG = "run_torchscript"
"""Option that lets a metric run the TorchScript archives that it loads."""

_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_starting = threading.Lock()


@contextlib.contextmanager
def checked_files(*, run_torchscript: bool) -> Iterator[list[str]]:
    """Check every file that is loaded through torch within the block; one block at a time.

    Args:
        run_torchscript: Load TorchScript archives, whatever their code does.

    Yields:
        A list that receives the SHA-256 of every TorchScript archive that was run on the user's word.

    Raises:
        ScorerError: A file could run code.
        WeightsError: See :func:`qualiclip_plugin.weights.pickles.check_pickle`.
    """
    import torch

    from qualiclip_plugin.weights.pickles import check_pickle, is_torchscript

    load, run, trusted = torch.load, torch.jit.load, list[str]()

    def checked_load(file: Any, *arguments: Any, **options: Any) -> Any:
        with _opened(file) as stream:
            check_pickle(stream, _name(file))
        return load(file, *arguments, **{**options, "weights_only": True})

    def checked_run(file: Any, *arguments: Any, **options: Any) -> Any:
        with _opened(file) as stream:
            script, digest = is_torchscript(stream), sha256_stream(stream)
        if digest not in _clip_files():
            if not script:
                raise RuntimeError(f"{_name(file)} is no TorchScript archive")
            if not run_torchscript:
                raise ScorerError(
                    f"{_name(file)} is a TorchScript archive, a program that could run code; where you "
                    f"trust its origin, add the option {FLAG}=true"
                )
            trusted.append(digest)
        return run(file, *arguments, **options)

    with _starting, replaced(torch, load=checked_load), replaced(torch.jit, load=checked_run), _tensors_only():
        try:
            yield trusted
        except pickle.UnpicklingError as error:
            raise ScorerError("its weights were refused: loading them could run code") from error


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Tensors alone also for whoever has taken ``torch.load`` from torch before."""
    before = os.environ.get(_ONLY)
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY]
        else:
            os.environ[_ONLY] = before


@cache
def _clip_files() -> frozenset[str]:
    """SHA-256 of OpenAI's CLIP files, which stand in their addresses."""
    from pyiqa.archs.clip_model import _MODELS

    return frozenset(address.split("/")[-2] for address in _MODELS.values())


@contextlib.contextmanager
def _opened(file: Any) -> Iterator[IO[bytes]]:
    """A file, given by its path or open already, at its start; the position of an open one is kept."""
    if isinstance(file, str | os.PathLike):
        with open_regular(file) as stream:
            yield stream
        return
    position = file.tell()
    file.seek(0)
    try:
        yield file
    finally:
        file.seek(position)


def _name(file: Any) -> str:
    return str(getattr(file, "name", file))
