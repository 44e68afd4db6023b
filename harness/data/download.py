"""Files from the network: resumed where a connection broke, verified, and in place only when whole."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.spec import RemoteFile
from qualiclip_plugin.utils.atomic import atomic_write, recorded_sha256, sha256_file, where_writable
from qualiclip_plugin.utils.errors import DatasetError, first_line

if TYPE_CHECKING:
    import requests

TIMEOUT_SECONDS = (10.0, 60.0)
"""To connect; between two pieces. A stalled server ends in an error, not in a hang."""

ATTEMPTS = 5
TRUSTED_BYTES = 2**26
"""Larger files are not hashed again at every start."""
_CHUNK = 1 << 16
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """Make sure that a file is in a folder, downloaded and verified.

    Args:
        remote: What to fetch.
        folder: Where it is kept; an interrupted download leaves ``<file>.part`` there and goes on from it.

    Returns:
        The verified file.

    Raises:
        DatasetError: It cannot be had, or its size or hash is not the expected one.
    """
    from filelock import FileLock

    target = folder / Path(remote.file).name
    try:
        # Asked before the lock, which needs a place that can be written.
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{target.name}.lock"):
                if not target.exists():
                    _download(remote, target)
        verify(remote, target)
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def address(remote: RemoteFile) -> str:
    """Where the file is."""
    if remote.address:
        return remote.address
    from huggingface_hub import hf_hub_url

    return hf_hub_url(remote.repository, remote.file, repo_type="dataset", revision=remote.revision or None)


def authorisation(remote: RemoteFile) -> dict[str, str]:
    """The header that lets a gated or private repository's file through: the user's token, if there is one.

    A plain address gets none, whoever it belongs to.
    """
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers() if remote.repository else {}
    return {name: value for name, value in headers.items() if name.lower() == "authorization"}


def refuse_offline(what: str) -> None:
    """Refuse to ask the network for something where ``HF_HUB_OFFLINE`` is set.

    Raises:
        DatasetError: It is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise DatasetError(f"{what} is not here, and HF_HUB_OFFLINE is set")


def verify(remote: RemoteFile, path: Path, *, thorough: bool = False) -> None:
    """Check a file against the declared hash, or the one recorded when it was first downloaded.

    Args:
        remote: What was downloaded.
        path: The file.
        thorough: Read it in any case, because it is about to be used.

    Raises:
        DatasetError: The content differs; the file is left as it is.
    """
    record = path.with_name(f"{path.name}.sha256")
    known = path.with_name(f"{path.name}.verified")
    size = path.stat().st_size
    stamp = f"{size} {path.stat().st_mtime_ns} {remote.sha256}".encode()
    # Hashing tens of gigabytes at every start would take minutes; the file's size and time vouch for it.
    if size > TRUSTED_BYTES and not thorough and known.exists() and known.read_bytes() == stamp:
        return
    actual = sha256_file(path)
    expected = remote.sha256 or recorded_sha256(path) or actual
    if actual != expected:
        raise DatasetError(
            f"{path}: sha256 {actual[:16]}..., expected {expected[:16]}...; delete it to download it again"
        )
    for file, content in ((record, f"{actual}  {path.name}\n".encode()), (known, stamp)):
        if not file.exists() or file.read_bytes() != content:
            # A cache that others provide read-only cannot be recorded in, only checked.
            with where_writable(), atomic_write(file) as opened:
                opened.write(content)


def _download(remote: RemoteFile, target: Path) -> None:
    import requests

    url = address(remote)
    refuse_offline(f"{url} ({target})")
    partial = target.with_name(f"{target.name}.part")
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            if _receive(url, partial, remote):
                break
        except requests.RequestException as error:
            reason = _in_words(error)
            if not _worth_repeating(error):
                # An earlier run may have left a part; it stays, to go on from.
                raise DatasetError(f"{url}: cannot be fetched: {reason}{_hint(error, remote)}") from error
    else:
        raise DatasetError(f"{url}: the download broke off {ATTEMPTS} times ({reason}); run again to go on")
    _check(partial, remote, url)
    os.replace(partial, target)


def _receive(url: str, partial: Path, remote: RemoteFile) -> bool:
    """Append to the partial file; whether it is whole now."""
    import requests

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    # Compressed transfers would make lengths and ranges mean something else than bytes of the file.
    headers |= {"Accept-Encoding": "identity", **authorisation(remote)}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if have and response.status_code == _RANGE_NOT_SATISFIABLE:
            return _finished_before(response, have, partial)
        response.raise_for_status()
        resumed = response.status_code == _PARTIAL_CONTENT
        total = int(response.headers.get("Content-Length", 0)) + (have if resumed else 0)
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                if remote.bytes and file.tell() > remote.bytes:
                    raise DatasetError(f"{url}: more than the declared {remote.bytes} bytes")
            file.flush()
            os.fsync(file.fileno())
            return not total or file.tell() == total


def _finished_before(response: requests.Response, have: int, partial: Path) -> bool:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total == str(have):
        return True
    partial.unlink()
    return False


def _check(partial: Path, remote: RemoteFile, url: str) -> None:
    size = partial.stat().st_size
    problem = f"{size} bytes, {remote.bytes} declared" if remote.bytes and size != remote.bytes else ""
    if not problem and remote.sha256:
        actual = sha256_file(partial)
        problem = f"sha256 {actual[:16]}..., {remote.sha256[:16]}... declared" if actual != remote.sha256 else ""
    if problem:
        partial.unlink()
        raise DatasetError(f"{url}: not the declared file: {problem}")


def _in_words(error: Exception) -> str:
    # The libraries wrap what the system said into the names of their own objects.
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return found[1] if found else first_line(error)


def _hint(error: Exception, remote: RemoteFile) -> str:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status not in (401, 403) or not remote.repository:
        return ""
    page = f"https://huggingface.co/datasets/{remote.repository}"
    return f"; accept its terms on {page} and give your token as HF_TOKEN or with `hf auth login`"


def _worth_repeating(error: Exception) -> bool:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    # A name that does not resolve or a refused connection will not get better within seconds.
    text = str(error)
    return not any(word in text for word in ("NameResolutionError", "Name or service", "Connection refused"))
