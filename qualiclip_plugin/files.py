"""Files that are either whole or not there: atomic writes and content hashes.

Whoever writes a temporary file or folder holds a lock on it, which the system gives back when the process ends,
however it ends. So a temporary whose lock can be taken has no writer any more: the next writer in the same folder
removes it, and never one that is still written (:func:`remove_leftovers`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from qualiclip_plugin.errors import QualiCLIPError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so no leftover is removed
    fcntl = None  # type: ignore[assignment]

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FILE, _FOLDER = ".part", ".partial"
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.(part|partial)")
"""Names of the temporaries written here; with the digits in the middle no other file is taken for one."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and move it into place when the block ends without an error.

    The ``name`` of the yielded file is the temporary path, so that the content can be checked before it is moved.

    Args:
        path: The final file; its folder is created where it is missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Raises:
        OSError: The folder cannot be written or the disk is full; ``path`` is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    with _temporary(target, _FILE) as temporary:
        with open(os.fspath(temporary), mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


@contextmanager
def where_writable() -> Iterator[None]:
    """Do without what a block writes where it may not write.

    Raises:
        OSError: Writing failed for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside ``folder`` and move it into place when the block ends without an error.

    Args:
        folder: The final folder.
        replace: Take the place of a folder that is there; else that one stays, because another process has made
            the same one meanwhile.

    Raises:
        OSError: The place cannot be written or the disk is full; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    with _temporary(folder, _FOLDER) as partial:
        yield partial
        if replace and folder.is_dir():
            with _temporary(folder, _FOLDER) as old:
                folder.rename(old / folder.name)
                partial.rename(folder)
            return
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose writers have ended.

    Safe beside writers on the same machine, and on network file systems whose locks hold for all machines (NFS 4).
    """
    for entry in folder.iterdir():
        if fcntl and _TEMPORARY.fullmatch(entry.name):
            # Somebody else removed or locked it, or the file system has no locks: it stays or is gone.
            with suppress(OSError):
                _remove_unlocked(entry)


def _remove_unlocked(temporary: Path) -> None:
    handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(temporary)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path, kind: str) -> Iterator[Path]:
    """A new, locked, empty file or folder beside ``target``; removed at the end where it is still there."""
    handle, path = _create(target, kind)
    try:
        yield path
    finally:
        _remove(path)
        if handle is not None:
            os.close(handle)


def _create(target: Path, kind: str) -> tuple[int | None, Path]:
    while True:
        path = target.parent / f".{target.name[:40]}.{secrets.token_hex(4)}{kind}"
        try:
            # With the rights that the final one is to have, so that the system applies the umask: it belongs to all
            # threads, and asking for it is changing it.
            path.mkdir() if kind == _FOLDER else path.touch(exist_ok=False)
        except FileExistsError:
            continue
        if fcntl is None:
            return None, path
        with suppress(FileNotFoundError):  # whoever removes leftovers may be faster than the lock
            handle = os.open(path, os.O_RDONLY)
            if _locked(handle):
                return handle, path
            os.close(handle)


def _locked(handle: int) -> bool:
    """Lock what was just created; whether it still has its name then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks, where nobody removes leftovers either
    return os.fstat(handle).st_nlink > 0


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def recorded_sha256(path: Path) -> str | None:
    """The hash recorded beside a file, in ``<name>.sha256``, when it was first seen; none where there is no record.

    Raises:
        QualiCLIPError: The record holds no hash.
    """
    record = path.with_name(f"{path.name}.sha256")
    if not record.exists():
        return None
    text = record.read_bytes()[:1000].decode("utf-8", "replace")
    digest = text[:64]
    if not re.fullmatch("[0-9a-f]{64}", digest) or text != f"{digest}  {path.name}\n":
        raise QualiCLIPError(f"{record} holds no SHA-256; delete it and {path.name} to fetch the file again")
    return digest
