"""Files that ``torch.save`` wrote, read without running code and without more memory than they have bytes.

``torch.load(weights_only=True)`` runs no code, but it calls what a pickle asks for from a list that includes
``bytearray(n)`` and tensors of any size: 30 bytes can take gigabytes. So what a pickle asks for is read first,
without loading it, and must be what a dictionary of tensors needs. Every such file, weights or state, is loaded here.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.utils.regular_files import open_regular

SLACK = 2**20
"""Bytes that tensors may have beyond the file: what compression of headers and small records may save."""

MAX_PICKLE = 64 * 2**20
"""Bytes of a pickle inside an archive: names and shapes of some hundred thousand tensors."""

_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5
"""Of a file in torch's format before 1.6: magic number, protocol, system, content, keys of the storages."""

_ALLOWED = {
    "collections Counter",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch.serialization _get_layout",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
}


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a file: containers of plain tensors, numbers and text.

    Raises:
        WeightsError: It asks for something else, or for more memory than it has bytes; or it is TorchScript.
        OSError: It is no regular file or cannot be read.
        Exception: Whatever reading damaged bytes raises.
    """
    with open_regular(path) as file:
        check_pickle(file, str(path))
        size = os.fstat(file.fileno()).st_size
    content = torch.load(path, map_location="cpu", weights_only=True)
    _check_memory(Path(path), content, size)
    return content


def check_pickle(file: IO[bytes], name: str) -> None:
    """Refuse a file whose pickle asks for more than tensors and plain containers; nothing is loaded.

    Args:
        file: At its start; where it stands afterwards is not defined.

    Raises:
        WeightsError: It asks for more, unpacks to more than it holds, or is a TorchScript archive.
        Exception: Whatever reading damaged bytes raises.
    """
    if is_torchscript(file):
        raise WeightsError(
            f"{name} was refused: it is a TorchScript archive, a program, and loading it could run code"
        )
    for asked in _asked_for(file, name):
        if asked not in _ALLOWED and not _is_type_of_numbers(asked):
            raise WeightsError(
                f"{name} was refused: it asks for {asked!r}, which no file of tensors needs: loading it could run "
                "code or take any amount of memory"
            )


def is_torchscript(file: IO[bytes]) -> bool:
    """Whether a file is a TorchScript archive, which holds code beside tensors; its position is set to the start."""
    found = False
    if _is_zip(file):
        with zipfile.ZipFile(file) as archive:
            found = any(entry.endswith("/constants.pkl") or "/code/" in entry for entry in archive.namelist())
    file.seek(0)
    return found


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers, each in memory of its own."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return False
    # A view can repeat one number a billion times, and the first computation with it would write them all out.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _asked_for(file: IO[bytes], name: str) -> Iterator[str]:
    """Every function and type that the pickles of a file name."""
    # By the first bytes, as torch tells them: an archive may follow a pickle that hides before it.
    if not _is_zip(file):
        for _ in range(_LEGACY_PICKLES):
            yield from _globals(file)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > file.seek(0, os.SEEK_END) + SLACK:
            raise WeightsError(f"{name} was refused: it unpacks to {unpacked} bytes, more than it has")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as stream:
                    content = stream.read(MAX_PICKLE + 1)
                if len(content) > MAX_PICKLE:
                    raise WeightsError(f"{name} was refused: a pickle of more than {MAX_PICKLE} bytes")
                yield from _globals(content)


def _globals(pickle: bytes | IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST"):
            yield opcode.name


def _is_zip(file: IO[bytes]) -> bool:
    file.seek(0)
    start = file.read(len(_ZIP))
    file.seek(0)
    return start == _ZIP


def _is_type_of_numbers(asked: str) -> bool:
    module, _, name = asked.partition(" ")
    if module not in ("torch", "torch.cuda"):
        return False
    return name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)


def _check_memory(path: Path, content: Any, size: int) -> None:
    """Refuse tensors that are larger than the file, and containers that hold each other again and again."""
    storages: dict[int, int] = {}
    waiting, visits = [content], 0
    while waiting:
        value, visits = waiting.pop(), visits + 1
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, Tensor):
            if not is_plain(value):
                raise WeightsError(f"{path} was refused: it holds no plain tensor of numbers")
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        # Each takes a byte at least, unless one stands for many.
        if visits + len(waiting) > 2 * size + SLACK or sum(storages.values()) > size + SLACK:
            raise WeightsError(f"{path} was refused: what it holds is larger than the file")
