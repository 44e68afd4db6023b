"""Addresses such as ``s3://bucket/photos``: the file system behind one, and how its files are called.

Storage that pyarrow knows is read through it, which needs no further package; any other through fsspec.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qualiclip_plugin.utils.errors import ConfigError, bare_address, first_line
from qualiclip_plugin.utils.shown import portable, printable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PYARROW_SCHEMES = frozenset({"abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs"})
_HOST_APART = ("file", "hdfs", "viewfs")  # their paths do not begin with the host


def is_address(source: str) -> bool:
    """Whether a source names its storage, rather than a path of this machine."""
    return "://" in source


@lru_cache(maxsize=256)
def filesystem(root: str) -> AbstractFileSystem:
    """The file system that an address opens, with fsspec's interface; empty: this machine's.

    Raises:
        ConfigError: Its scheme is unknown, or it needs a package that is missing.
    """
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    try:
        if urlsplit(root).scheme in PYARROW_SCHEMES:
            return ArrowFSWrapper(FileSystem.from_uri(root)[0])
        return fsspec.url_to_fs(root)[0] if root else fsspec.filesystem("file")
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(f"{without_secrets(root)}: {first_line(error)}") from error


def split_address(address: str) -> tuple[str, str]:
    """The root that opens an address's file system, and the path there.

    ``s3://key:secret@bucket/a b/*.jpg?region=x`` gives ``s3://key:secret@bucket?region=x`` and ``bucket/a b/*.jpg``.

    Raises:
        ConfigError: See :func:`filesystem`; or the address is malformed.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise ConfigError(f"{without_secrets(address)}: {error}") from error
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in PYARROW_SCHEMES:
        return root, str(filesystem(root)._strip_protocol(address))
    options = f"?{parts.query}" if parts.query else ""
    if parts.scheme in _HOST_APART:
        return f"{root}/{options}", parts.path
    return f"{root}{options}", f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def read_bytes(root: str, path: str) -> bytes:
    """Content of a file."""
    content: bytes = filesystem(root).cat_file(path)
    return content


def read_address(address: str) -> bytes:
    """Content of the file at an address."""
    return read_bytes(*split_address(address))


def shown(root: str, path: str) -> str:
    """How a file is called in tables: without the credentials and options that its address may carry."""
    if is_address(path):
        return portable(bare_address(path))
    return f"{urlsplit(root).scheme}://{path}" if root else portable(path)


def without_secrets(address: str) -> str:
    """An address as messages show it, without credentials and options."""
    return printable(bare_address(address) if is_address(address) else address)
