"""Errors that name what is wrong: input problems that a user can fix, shown without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from qualiclip_plugin.utils.shown import printable


class QualiCLIPError(Exception):
    """Base of all declared errors of the plugin and the harness.

    Args:
        lines: The message, line by line. A line break or an escape code inside one, as in a file's name, is shown
            as text.
    """

    def __init__(self, *lines: object) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class WeightsError(QualiCLIPError):
    """A weight name, file or download cannot be used."""


class ImageError(QualiCLIPError):
    """An image cannot be read or scored."""


class ConfigError(QualiCLIPError):
    """A configuration value, option or plan is invalid."""


class DatasetError(QualiCLIPError):
    """A dataset, its metadata or its photographs cannot be used."""


class MachineError(QualiCLIPError):
    """This machine ran out of something; it is not a fault of the image or scorer."""


def out_of_room(error: OSError) -> bool:
    """Whether the disk, a quota or the table of open files is full, or a temporary folder cannot be written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)


@contextmanager
def disk_errors(
    path: str | os.PathLike[str],
    error: type[QualiCLIPError],
    what: str = "written",
    but: type[OSError] | tuple[()] = (),
) -> Iterator[None]:
    """Turn what the system says of a file or folder within the block into a declared error that names it.

    Args:
        what: What was tried, for the message: ``"written"``, ``"read"``.
    """
    try:
        yield
    except but:
        raise
    except OSError as problem:
        raise error(f"{os.fspath(path)}: cannot be {what}: {problem.strerror or problem}") from problem


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean a, b?"`` for the known names nearest to ``name``; empty if none is near.

    Args:
        cutoff: How near they must be, from 0 to 1 (see :func:`difflib.get_close_matches`).
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"; did you mean {', '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters; its type where it has no text.

    Addresses in it lose their credentials and options: libraries quote the whole address that they were given.
    """
    lines = _ADDRESS.sub(lambda found: bare_address(found[0]), str(error)).strip().splitlines()
    return printable(lines[0])[:200] if lines else type(error).__name__


def bare_address(address: str) -> str:
    """An address without credentials, options and fragment."""
    # Not by urlsplit, which refuses some texts: those, too, are shown.
    scheme, _, rest = without_options(address).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def without_options(address: str) -> str:
    """An address without options and fragment."""
    return re.split("[?#]", address, maxsplit=1)[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    # Libraries raise their own types, or a plain RuntimeError whose text alone tells what happened.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


_ADDRESS = re.compile(r"\w[\w+.-]*://\S+")

_OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "could not create a primitive",  # oneDNN
    "can't start new thread",  # Python, for a thread's stack
    "failed to map segment",  # the loader, for a library
    "bad_alloc",
)
