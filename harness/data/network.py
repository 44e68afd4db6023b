"""Check whether the Hub can be reached, and work without it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit

from qualiclip_plugin.utils.replacing import replaced


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
    """Keep the Hub's client off the network within the block, if that is ``wanted``."""
    # Without a network the Hub's client repeats every request for half a minute before it gives up.
    from huggingface_hub import constants

    with replaced(constants, HF_HUB_OFFLINE=constants.HF_HUB_OFFLINE or wanted):
        yield


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Refuse every connection within the block."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("none was tried")

    with replaced(socket.socket, connect=refuse), replaced(socket, getaddrinfo=refuse), offline():
        yield
