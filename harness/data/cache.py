"""Where generated and downloaded data is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder under ``$QUALICLIP_CACHE``, else under the user's cache folder; not created here."""
    root = os.environ.get("QUALICLIP_CACHE")
    if not root:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "qualiclip")
    return Path(root, *parts)
