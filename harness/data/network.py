"""Whether the Hub can be reached, and doing without it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit


@cache
def hub_reachable() -> bool:
    """Whether the Hub's name resolves, asked once; behind a proxy it need not."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Keep the Hub's client from asking the network within the block, where that is ``wanted``."""
    # Without a network the Hub's client repeats every request for half a minute before it gives up.
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Refuse every connection within the block."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("none was tried")

    connect, resolve = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse  # type: ignore[method-assign, assignment]
    try:
        with offline():
            yield
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, resolve  # type: ignore[method-assign]
