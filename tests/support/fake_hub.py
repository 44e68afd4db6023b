"""The part of the Hugging Face Hub that uploads, listings and downloads need, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0ff"
_FILE_ADDRESS = "/{repo_id}/resolve/{revision}/{filename}"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)/main)?(?:/(.*))?$")
_RESOLVE = re.compile(rf"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.*)$")


class FakeHub(ThreadingHTTPServer):
    """Keeps files by kind of repository (``models`` or ``datasets``), its name and their path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: defaultdict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)

    @property
    def address(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.shutdown()


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process take ``hub`` for the Hub, as ``HF_ENDPOINT`` does for a new one."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + _FILE_ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := _RESOLVE.match(path):
            kind, repository, name = found.groups()
            self._send_file(self.server.files[kind or "models", repository].get(name))
        elif found := _API.match(path):
            kind, repository, action, _ = found.groups()
            files = self.server.files[kind, repository]
            facts = {"id": repository, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self._send_json([_entry(*item) for item in sorted(files.items())] if action == "tree" else facts)
        else:
            self._send_json({})

    do_HEAD = do_GET  # noqa: N815 (the library's name)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = _API.match(unquote(urlsplit(self.path).path))
        kind, repository, action, _ = found.groups() if found else ("", "", "", "")
        files = self.server.files[kind, repository]
        answer: Any = {}
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            answer = {"url": f"{self.server.address}/{wanted['organization']}/{wanted['name']}"}
        elif action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]}
        elif action == "commit":
            lines = map(json.loads, body.splitlines())
            files |= {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            answer = {"commitOid": COMMIT, "commitUrl": f"{self.server.address}/{repository}/commit/{COMMIT}"}
        elif action == "paths-info":
            wanted = (
                json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", body.decode())
            )
            answer = [_entry(name, files[name]) for name in map(unquote, wanted) if name in files]
        self._send_json(answer)

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        facts = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(found[1]), int(found[2] or len(content) - 1) + 1
            part = content[start:stop]
            self._send(206, part, {**facts, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})
        else:
            self._send(200, content, facts)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
