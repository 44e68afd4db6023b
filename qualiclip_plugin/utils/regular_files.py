"""Open foreign files: only regular files, up to the expected size.

A named pipe or a terminal would block for ever, a device such as ``/dev/zero`` never ends, and a link can lead to
either under any name. Every reader of files from elsewhere opens them here, so that each refuses the same things.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO


def open_regular(path: str | os.PathLike[str], most: int = 0) -> IO[bytes]:
    """Open a file to read its bytes.

    Args:
        path: The file, or a link to it.
        most: Bytes that it may have at most; 0: any number.

    Raises:
        OSError: It is a folder, a pipe or a device, which are not opened; it is too large, missing or cannot be
            read. ``strerror`` says which.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(path):  # one that is closed to the reader says so
            raise IsADirectoryError(errno.EISDIR, "a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if most and status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than {most}", os.fspath(path))
    return open(path, "rb")


def read_regular(path: str | os.PathLike[str], most: int = 0) -> bytes:
    """The content of a file; see :func:`open_regular`."""
    with open_regular(path, most) as file:
        return file.read()
