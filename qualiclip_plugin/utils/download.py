"""Files from the network: resumed after a broken connection, verified, and in place only when complete.

Files of the Hugging Face Hub come by its own client, with the user's token, so that gated and private repositories
can be read; files at other addresses by plain HTTP.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin

from qualiclip_plugin.utils.atomic import atomic_write, inside, recorded_sha256, sha256_file, where_writable
from qualiclip_plugin.utils.errors import QualiCLIPError, bare_address, first_line

if TYPE_CHECKING:
    import aiohttp
    import requests

TIMEOUT_SECONDS = (10.0, 60.0)
"""To connect; between two pieces. A stalled server ends in an error, not in a hang."""

ATTEMPTS = 5
LARGEST_BYTES = 2**40
TRUSTED_BYTES = 2**26
"""Larger files are not hashed again at every start."""
_CHUNK = 1 << 16
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


class DownloadError(QualiCLIPError):
    """A file cannot be fetched, or is not the expected one."""


def download(
    address: str,
    target: Path,
    *,
    sha256: str = "",
    size: int = 0,
    limit: int = LARGEST_BYTES,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Fetch a file, unless it is there; processes that want the same one wait for each other.

    Args:
        address: ``https://...``; one of the Hub is recognised.
        target: Its place. An interrupted download leaves ``<name>.part`` there, from which a later one continues.
        sha256: Expected hash; empty if unknown.
        size: Expected bytes; 0 if unknown.
        limit: Most bytes that are accepted.
        check: Raises a ``QualiCLIPError`` where the content is not what it should be.

    Raises:
        DownloadError: It cannot be fetched, is a web page or too large, or not the expected file.
        OSError: The folder cannot be written.
    """
    from filelock import FileLock

    refuse_offline(f"{bare_address(address)} ({target})")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.part")
        limit = min(limit, size or limit)
        if hub := _hub_file(address):
            _fetch_from_hub(hub, partial, address, limit)
        else:
            _fetch(address, partial, limit, known=bool(size or sha256))
        try:
            _compare(partial, sha256, size)
            check(partial)
        except QualiCLIPError as error:
            _discard(partial)
            raise DownloadError(f"{bare_address(address)}: not the expected file: {error}") from error
        _forget(partial)  # first, so that a kill in between leaves nothing beside the file
        os.replace(partial, target)


def verify(path: Path, sha256: str = "", *, thorough: bool = True) -> None:
    """Compare a downloaded file with the expected hash, or with the one recorded when it was first seen.

    Args:
        path: The file; its hash is recorded beside it, in ``<name>.sha256``.
        sha256: Expected hash; empty if unknown.
        thorough: Read it in any case; else a large file of the same size and time as when it was last read passes.

    Raises:
        DownloadError: The content differs; the file is left as it is.
    """
    record, known = (path.with_name(f"{path.name}.{suffix}") for suffix in ("sha256", "verified"))
    found = path.stat()
    stamp = f"{found.st_size} {found.st_mtime_ns} {sha256}".encode()
    trusted = not thorough and found.st_size > TRUSTED_BYTES
    if trusted and known.exists() and known.read_bytes() == stamp:
        return
    actual = sha256_file(path)
    expected = sha256 or recorded_sha256(path) or actual
    if actual != expected:
        raise DownloadError(
            f"{path} is not the file it should be: sha256 {actual[:16]}..., expected {expected[:16]}...; "
            f"delete it and {record.name} to download it again"
        )
    for file, content in ((record, f"{actual}  {path.name}\n".encode()), *([(known, stamp)] if trusted else [])):
        if not file.exists() or file.read_bytes() != content:
            # A cache that others provide read-only cannot be recorded in, only checked.
            with where_writable(), atomic_write(file) as opened:
                opened.write(content)


def refuse_offline(what: str) -> None:
    """Refuse to ask the network for something where ``HF_HUB_OFFLINE`` is set.

    Raises:
        DownloadError: It is set.
    """
    if is_offline():
        raise DownloadError(f"{what} is not here, and HF_HUB_OFFLINE is set")


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _compare(path: Path, sha256: str, size: int) -> None:
    actual = path.stat().st_size
    if size and actual != size:
        raise DownloadError(f"{actual} bytes, {size} expected")
    if sha256 and (digest := sha256_file(path)) != sha256:
        raise DownloadError(f"sha256 {digest[:16]}..., {sha256[:16]}... expected")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _forget(partial)


def _forget(partial: Path) -> None:
    """Remove what a later download would need to continue with a part."""
    _mark(partial).unlink(missing_ok=True)
    shutil.rmtree(_hub_folder(partial), ignore_errors=True)


def _mark(partial: Path) -> Path:
    """Where the server's mark of the version is kept to which a part belongs."""
    return partial.with_name(f"{partial.name}.version")


def _hub_folder(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.hub")


def _hub_file(address: str) -> dict[str, str]:
    """Kind, repository, revision and path of a file of the Hub; empty for another address."""
    from huggingface_hub import constants

    hosts = "|".join(re.escape(host.rstrip("/")) for host in (constants.ENDPOINT, "https://huggingface.co"))
    found = re.fullmatch(rf"(?:{hosts})/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?#]+)", address)
    if found is None:
        return {}
    kind, repository, revision, name = found.groups()
    texts = {"repo_id": repository, "revision": unquote(revision), "filename": unquote(name)}
    return {"repo_type": "dataset" if kind else "model", **texts}


def _fetch_from_hub(hub: dict[str, str], partial: Path, address: str, limit: int) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

    folder = _hub_folder(partial)
    wanted: dict[str, Any] = hub
    try:
        inside(folder, hub["filename"])
        url = hf_hub_url(**wanted)
        found = get_hf_file_metadata(url)
        _check_size(found.size or 0, limit)
        _refuse_plain(url, found.location)
        os.replace(hf_hub_download(**wanted, local_dir=folder), partial)
    except OSError as error:
        if error.errno is not None and not hasattr(error, "response"):
            raise
        closed = isinstance(error, GatedRepoError | RepositoryNotFoundError)
        page = f"https://huggingface.co/{'datasets/' if hub['repo_type'] == 'dataset' else ''}{hub['repo_id']}"
        hint = f"; accept its terms on {page} and give your token as HF_TOKEN or with `hf auth login`"
        raise DownloadError(f"{address}: cannot be fetched: {_in_words(error)}{hint if closed else ''}") from error
    except Exception as error:  # two HTTP libraries, by the client's version, and errors of its own
        raise DownloadError(f"{address}: cannot be fetched: {_in_words(error)}") from error


def _fetch(address: str, partial: Path, limit: int, *, known: bool) -> None:
    import requests

    shown, reason = bare_address(address), "it ended early"
    for _ in range(ATTEMPTS):
        try:
            if _receive(address, partial, limit, known=known):
                return
        except requests.RequestException as error:
            reason = _in_words(error)
            if not _worth_repeating(error):
                # An earlier run may have left a part; it stays, to go on from.
                raise DownloadError(f"{shown}: cannot be fetched: {reason}") from error
        except DownloadError as error:
            _discard(partial)
            raise DownloadError(f"{shown}: cannot be fetched: {error}") from error
    if not _mark(partial).exists():
        _discard(partial)
    raise DownloadError(f"{shown}: the download broke off {ATTEMPTS} times ({reason}); run again to go on")


def _receive(address: str, partial: Path, limit: int, *, known: bool) -> bool:
    """Write or append to the partial file; whether it is whole now.

    Args:
        partial: Goes on where a part of the same version is there.
        limit: Most bytes.
        known: Whether the size or hash is known, so that a part is not taken for the whole.
    """
    import requests

    have = partial.stat().st_size if partial.exists() and _mark(partial).exists() else 0
    # Compressed transfers would make lengths and ranges mean something else than bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": _mark(partial).read_text(encoding="utf-8")}
    hooks = {"response": _refuse_plain_redirect}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, hooks=hooks) as response:
        served = response.headers.get("Content-Range", "")
        if have and response.status_code == _RANGE_NOT_SATISFIABLE:
            return _finished_before(served, have, partial)
        response.raise_for_status()
        start = have if response.status_code == _PARTIAL_CONTENT else 0
        if start and not served.startswith(f"bytes {start}-"):
            raise DownloadError(f"asked for bytes from {start}, the server sent {served!r}")
        total = _total(response, start, known=known)
        _check_size(total, limit)
        if not start:
            _discard(partial)
            _remember_version(response, partial)
        with partial.open("ab") as file:
            for chunk in _shown(response, partial.stem, total, start):
                if not file.tell() and not known:
                    _refuse_page(response, chunk)
                _check_size(file.tell() + len(chunk), limit)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            return not total or file.tell() == total


def _finished_before(served: str, have: int, partial: Path) -> bool:
    if served.rpartition("/")[2] == str(have):
        return True
    _discard(partial)
    return False


def _total(response: requests.Response, start: int, *, known: bool) -> int:
    """Bytes of the whole file; 0 if the server says in another way when all of it was sent."""
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdecimal():
        return start + int(length[:20])
    if not known and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
        raise DownloadError(
            f"the server does not say how long it is (Content-Length: {length[:40]!r}), and a part would be taken "
            "for the whole; its size or SHA-256 has to be known"
        )
    return 0


def _check_size(found: int, limit: int) -> None:
    if found > limit:
        raise DownloadError(f"more than {limit} bytes")


def _refuse_page(response: requests.Response, start: bytes) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    text = start[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind in ("text/html", "application/xhtml+xml") or text.startswith((b"<!doctype html", b"<html", b"<head")):
        raise DownloadError("the server sent a web page in place of the file, perhaps one to log in")


def _refuse_plain_redirect(response: requests.Response, **_: object) -> None:
    """A hook of ``requests``: what was asked for by HTTPS must not come by HTTP, which others can alter."""
    if response.is_redirect:
        _refuse_plain(response.url, response.headers["Location"])


@cache
def encrypted_redirects() -> aiohttp.TraceConfig:
    """The same for ``aiohttp``, with which fsspec reads from web servers; an entry of its ``trace_configs``."""
    import aiohttp

    async def refuse(session: object, context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        _refuse_plain(str(redirect.url), redirect.response.headers.get("Location", ""))

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config


def _refuse_plain(address: str, location: str) -> None:
    place = urljoin(address, location)
    if address.startswith("https:") and not place.startswith("https:"):
        raise DownloadError(f"redirected from HTTPS to {bare_address(place)}")


def _remember_version(response: requests.Response, partial: Path) -> None:
    """Keep what tells versions of the file apart; without it a part could be continued with another file."""
    mark = response.headers.get("ETag", "")
    if not mark or mark.startswith("W/"):
        mark = response.headers.get("Last-Modified", "")
    if mark:
        _mark(partial).write_text(mark, encoding="utf-8")


def _shown(response: requests.Response, name: str, total: int, start: int) -> Iterator[bytes]:
    with _progress(name, total, start) as advance:
        for chunk in response.iter_content(_CHUNK):
            yield chunk
            advance(len(chunk))


@contextmanager
def _progress(name: str, total: int, start: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total or None, completed=start)
        yield lambda count: progress.advance(task, count)


def _in_words(error: Exception) -> str:
    # The libraries wrap what the system said into the names of their own objects.
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return found[1] if found else first_line(error)


def _worth_repeating(error: Exception) -> bool:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    # A name that does not resolve or a refused connection will not get better within seconds.
    text = str(error)
    return not any(word in text for word in ("NameResolutionError", "Name or service", "Connection refused"))
