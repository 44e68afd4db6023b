"""A web server on this machine: files, ranges, answers that break off or stall, error pages, some of a Hub."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from harness.data.spec import RemoteFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalServer:
    """Serves bytes by name.

    Attributes:
        files: Name to content; a Hub repository's files stand under ``datasets/OWNER/NAME/resolve/REVISION/FILE``.
        cuts: After how many bytes the next answers break off.
        stall_after: Bytes of an answer after which nothing more comes; none: all of it is sent.
        status: Of every answer; 200 for the files themselves.
        ranges: Whether parts can be asked for.
        length: What is said to be the length of a file; no text: nothing is said, and the connection is closed.
        kind: Content type of a file.
        redirects: Name to where else it is.
        token: Asked of those who want a file; empty: nobody is.
        requests: The ``Range`` of every GET, or none.
        paths: Of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.stall_after: int | None = None
        self.stopped = threading.Event()
        self.status = 200
        self.ranges = True
        self.length: Callable[[int], str] = str
        self.kind = ""
        self.redirects: dict[str, str] = {}
        self.token = ""
        self.requests: list[str | None] = []
        self.paths: list[str] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        # A client that goes away is part of what is tested.
        self.server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        """``http://...`` without a slash at its end."""
        host, port = self.server.server_address[:2]
        return f"http://{host}:{port}"

    def publish(self, repository: str, files: dict[str, bytes], revision: str = COMMIT) -> None:
        """Make a dataset repository of the Hub, with one commit."""
        for name, content in files.items():
            self.files[f"datasets/{repository}/resolve/{revision}/{name}"] = content

    def stop(self) -> None:
        """Stop serving."""
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving() -> Iterator[LocalServer]:
    """A server for the length of a block."""
    started = LocalServer()
    try:
        yield started
    finally:
        started.stop()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: LocalServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.owner.requests.append(self.headers.get("Range"))
        self._answer(body=True)

    def do_POST(self) -> None:
        # Which of these paths are in a repository.
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.owner.paths.append(self.path)
        self._json([entry for entry in self._tree() if entry["path"] in asked.get("paths", ())])

    def _answer(self, *, body: bool) -> None:
        self.owner.paths.append(self.path)
        name = unquote(urlsplit(self.path).path).strip("/")
        if self.owner.status != 200:
            self._error(self.owner.status)
        elif self.owner.token and self.headers.get("Authorization") != f"Bearer {self.owner.token}":
            self._error(401, "GatedRepo")
        elif name in self.owner.redirects:
            self.send_response(302)
            self.send_header("Location", self.owner.redirects[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in self.owner.files:
            self._file(self.owner.files[name], name, body)
        elif name.startswith("api/datasets/") and self._repository() is not None:
            self._json(self._tree() if "/tree/" in self.path else self._info())
        else:
            self._error(404)

    def _file(self, content: bytes, name: str, body: bool) -> None:
        mark = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = self.headers.get("Range") if self.owner.ranges else None
        if self.headers.get("If-Range", mark) != mark:
            wanted = None  # of another version
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last) + 1 if last else len(content)
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = content[start:end]
        self.send_response(206 if wanted else 200)
        if length := self.owner.length(len(part)):
            self.send_header("Content-Length", length)
        else:
            self.close_connection = True
        if self.owner.kind:
            self.send_header("Content-Type", self.owner.kind)
        self.send_header("ETag", mark)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        if self.owner.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if "/resolve/" in name:
            self.send_header("X-Repo-Commit", name.split("/resolve/")[1].split("/", maxsplit=1)[0])
        self.end_headers()
        if not body:
            return
        if self.owner.cuts:
            self.wfile.write(part[: self.owner.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(part[: self.owner.stall_after])
        if self.owner.stall_after is not None and self.owner.stall_after < len(part):
            self.wfile.flush()
            self.owner.stopped.wait(60)
            self.close_connection = True

    def _repository(self) -> str | None:
        name = "/".join(urlsplit(self.path).path.split("/")[3:5])
        return name if any(file.startswith(f"datasets/{name}/") for file in self.owner.files) else None

    def _tree(self) -> list[dict[str, Any]]:
        """The files of a repository, or files and folders directly in one of its folders."""
        split = urlsplit(self.path)
        start = f"datasets/{self._repository()}/resolve/{COMMIT}/"
        files = {n.removeprefix(start): len(c) for n, c in self.owner.files.items() if n.startswith(start)}
        if "recursive=false" not in split.query:
            return [_entry(name, size) for name, size in files.items()]
        folder = unquote(split.path).partition(f"/tree/{COMMIT}")[2].strip("/")
        inside = [name.removeprefix(f"{folder}/") for name in files if not folder or name.startswith(f"{folder}/")]
        names = dict.fromkeys("/".join(filter(None, (folder, name.split("/")[0]))) for name in inside)
        return [_entry(name, files.get(name)) for name in names]

    def _info(self) -> dict[str, Any]:
        siblings = [{"rfilename": entry["path"]} for entry in self._tree()]
        return {"id": self._repository(), "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def _json(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: int, code: str = "EntryNotFound") -> None:
        self.send_response(status)
        if status in (401, 404):
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


def _entry(path: str, size: int | None) -> dict[str, Any]:
    kind = {"type": "directory"} if size is None else {"type": "file", "size": size}
    return {**kind, "path": path, "oid": "0" * 40}


def remote(server: LocalServer, name: str, kind: type[RemoteFile] = RemoteFile, **options: Any) -> Any:
    """A file of the server as a specification names it."""
    return kind(file=name, address=f"{server.address}/{name}", **options)
