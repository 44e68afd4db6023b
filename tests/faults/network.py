"""A server on this machine that stalls or hangs up in the middle of a file."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


class Files:
    """Serves the files of a folder, with ranges.

    Args:
        folder: The files.

    Attributes:
        stall_after: Bytes of an answer after which nothing more comes; none: all of it is sent.
        cut_after: Bytes of an answer after which the connection is closed; none: all of it is sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stall_after: int | None = None
        self.cut_after: int | None = None
        self.patience = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def address(self, name: str) -> str:
        """Where a file is."""
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def close(self) -> None:
        """Stop serving."""
        self.patience.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Files]:
    """Serve a folder for the length of a block."""
    files = Files(folder)
    try:
        yield files
    finally:
        files.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Files

    def do_GET(self) -> None:
        content = (self.owner.folder / self.path.strip("/")).read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        until = self.owner.cut_after if self.owner.cut_after is not None else self.owner.stall_after
        with contextlib.suppress(OSError):  # whoever asked may have been killed
            self.wfile.write(body[:until])
            self.wfile.flush()
        if self.owner.cut_after is None and until is not None and until < len(body):
            self.owner.patience.wait(60)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""
