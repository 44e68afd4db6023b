"""Files that are complete or absent: atomic writes, paths that stay in their folder, content hashes.

A temporary file or folder has a name that nothing else has, and whoever writes it holds a lock on it, which the
system gives back when the process ends, however it ends. So a temporary whose lock can be taken has no writer any
more, and is removed (:func:`remove_leftovers`) when a process first writes into the same folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from qualiclip_plugin.utils.errors import QualiCLIPError
from qualiclip_plugin.utils.regular_files import open_regular, read_regular

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so no leftover is removed
    fcntl = None  # type: ignore[assignment]

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FILE, _FOLDER, _REPLACED = ".part", ".partial", ".replaced"
_TEMPORARY = re.compile(r"\.qualiclip-tmp-[0-9a-f]{16}\.(part|partial|replaced)")
"""Names of the temporaries written here; no other program's files have them."""


def inside(
    folder: str | os.PathLike[str], *parts: str, error: type[QualiCLIPError] = QualiCLIPError, where: str = ""
) -> Path:
    """Join a folder and names that may come from others; the result never lies outside the folder.

    Args:
        folder: May itself be reached by links.
        *parts: Relative paths with slashes.

    Raises:
        QualiCLIPError: Of the type ``error``: a part is empty, absolute or an address, has a drive, ``..`` or a zero
            byte, or the path leads outside by a link.
    """
    path = Path(folder, *parts)
    within = all(map(is_relative, parts)) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    if not within:
        place = f"{where}: " if where else ""
        raise error(f"{place}{'/'.join(parts)!r} leads out of the folder {os.fspath(folder)}")
    return path


def is_relative(part: str) -> bool:
    """Whether a text is a path that stays in the folder it is joined to, judged only by its name."""
    windows = PureWindowsPath(part)  # splits at slashes of either kind
    outside = part.startswith("/") or windows.drive or windows.root or ".." in windows.parts
    return bool(PurePosixPath(part).parts) and not outside and "://" not in part and "\0" not in part


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
    # Once, because a list of the folder takes longer than the write where a run has thousands of files.
    _remove_leftovers_once(os.path.realpath(target.parent))
    with _temporary(target.parent, _FILE) as temporary:
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
        replace: Take the place of a folder that is there; else that one stays, because another process has made
            the same one meanwhile. A kill in between may leave the earlier one under a temporary name, from which
            :func:`remove_leftovers` puts it back.

    Raises:
        OSError: The place cannot be written or the disk is full; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    with _temporary(folder.parent, _FOLDER) as partial:
        yield partial
        if replace and folder.is_dir():
            with _temporary(folder.parent, _REPLACED) as old:
                folder.rename(old / folder.name)
                partial.rename(folder)
            return
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill in between leaves no part of it under its name.

    Raises:
        OSError: It is not there, or its place cannot be written.
    """
    with _temporary(folder.parent, _FOLDER) as removed:
        folder.rename(removed / folder.name)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose writers have ended.

    A folder that was being replaced comes back where nothing has taken its place. Safe beside writers on the same
    machine, and on network file systems whose locks hold for all machines (NFS 4).
    """
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for temporary in found:
        # Somebody else removed or locked it, or the file system has no locks: it stays or is gone.
        with suppress(OSError):
            if _ours(temporary.lstat()):
                _remove_unlocked(temporary)


@cache
def _remove_leftovers_once(folder: str) -> None:
    remove_leftovers(Path(folder))


def _ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))


def _remove_unlocked(temporary: Path) -> None:
    # Without waiting: it may have become a named pipe since it was looked at.
    handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(temporary)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a temporary that may be gone, as far as that can be done."""
    with suppress(OSError):
        if path.suffix == _REPLACED:
            _put_back(path)
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
        elif fcntl is None:
            shutil.rmtree(path)
        else:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _empty(handle)
            finally:
                os.close(handle)
            path.rmdir()


def _put_back(replaced: Path) -> None:
    """Give a folder its place again, unless the one that was to replace it is there."""
    for folder in replaced.iterdir():
        if not os.path.lexists(target := replaced.parent / folder.name):
            folder.rename(target)


def _empty(folder: int) -> None:
    """Remove all that an opened folder holds.

    What lies deep is moved up first: ``shutil.rmtree`` calls itself for every level, and fails at a thousand.
    """
    while names := _without_files(folder):
        for name in names:
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                for inner in _without_files(handle):
                    os.rename(inner, secrets.token_hex(8), src_dir_fd=handle, dst_dir_fd=folder)
            finally:
                os.close(handle)
            os.rmdir(name, dir_fd=folder)


def _without_files(folder: int) -> list[str]:
    """Remove the files of an opened folder; returns the names of its folders."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


@contextmanager
def _temporary(folder: Path, kind: str) -> Iterator[Path]:
    """A new, locked, empty file or folder; removed at the end where it is still there."""
    handle, path = _create(folder, kind)
    try:
        yield path
    finally:
        _remove(path)
        if handle is not None:
            os.close(handle)


def _create(folder: Path, kind: str) -> tuple[int | None, Path]:
    while True:
        path = folder / f".qualiclip-tmp-{secrets.token_hex(8)}{kind}"
        try:
            # With the rights that the final one is to have, so that the system applies the umask: it belongs to all
            # threads, and asking for it is changing it.
            path.touch(exist_ok=False) if kind == _FILE else path.mkdir()
        except FileExistsError:
            continue
        if fcntl is None:
            return None, path
        with suppress(FileNotFoundError):  # whoever removes leftovers may be faster than the lock
            handle = os.open(path, os.O_RDONLY)
            if take_lock(handle):
                return handle, path
            os.close(handle)


def take_lock(handle: int) -> bool:
    """Lock an open file; whether nobody else holds it and it still has a name.

    The system gives the lock back when the file is closed, however the process ends. A file system without locks
    grants every one.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return os.fstat(handle).st_nlink > 0


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is in such a block with this folder, where folders can be locked."""
    handle = None
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as lower-case hexadecimal digits."""
    with open_regular(path) as file:
        return sha256_stream(file)


def sha256_stream(file: IO[bytes]) -> str:
    """The same of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def recorded_sha256(path: Path) -> str | None:
    """The hash recorded beside a file, in ``<name>.sha256``, when it was first seen; none if there is no record.

    Raises:
        QualiCLIPError: The record holds no hash.
    """
    record = path.with_name(f"{path.name}.sha256")
    if not record.exists():
        return None
    text = read_regular(record, 1000).decode("utf-8", "replace")
    digest = text[:64]
    if not re.fullmatch("[0-9a-f]{64}", digest) or text != f"{digest}  {path.name}\n":
        raise QualiCLIPError(f"{record} holds no SHA-256; delete it and {path.name} to fetch the file again")
    return digest
