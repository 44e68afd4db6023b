"""The files that pyiqa fetches for its metrics: which, from where, and to where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult

from harness.data.network import without_network
from harness.scorers.names import OURS, ScorerError, is_ours, parse_name
from qualiclip_plugin.utils.errors import bare_address, first_line
from qualiclip_plugin.utils.replacing import replaced


@contextlib.contextmanager
def named_downloads() -> Iterator[list[Path]]:
    """Name what cannot be downloaded within the block.

    Yields:
        A list that receives the place of every file that pyiqa asks for, whether it is there or not.

    Raises:
        ScorerError: A file is not here and cannot be downloaded.
    """
    import torch.hub
    from pyiqa.utils import download_util

    files: list[Path] = []

    def asked(address: str) -> ParseResult:
        parts: ParseResult = parse(address)
        files.append(Path(download_util.DEFAULT_CACHE_DIR, Path(parts.path).name))
        return parts

    def download(url: str, dst: str, *arguments: Any, **options: Any) -> None:
        try:
            original(url, dst, *arguments, **options)
        except OSError as error:
            place = Path(dst)
            raise ScorerError(
                f"its weights are not on this machine and cannot be downloaded ({first_line(error)}): "
                f"put {place.name} from {bare_address(url)} into {place.parent}"
            ) from error

    original, parse = torch.hub.download_url_to_file, download_util.urlparse
    with (
        replaced(torch.hub, download_url_to_file=download),
        # Every address is parsed, also of a file that is there.
        replaced(download_util, download_url_to_file=download, urlparse=asked),
    ):
        yield files


def weight_files(name: str, *, fetch: bool) -> list[Path]:
    """The files that a scorer loads; those of pyiqa's own that come from elsewhere (the Hub) are not among them.

    Args:
        name: Of a metric, as in ``iqa-harness run``.
        fetch: Download what is missing; otherwise say where the first missing file would be.

    Raises:
        ScorerError: It cannot start for another reason, or a file cannot be downloaded.
        WeightsError: See :func:`qualiclip_plugin.weights.loading.fetch`.
    """
    from harness.scorers.start import create_scorer
    from qualiclip_plugin.weights import loading

    base, options = parse_name(name)
    if is_ours(base):
        card = str(options.get("weights", OURS.get(base, base)))
        return [loading.fetch(card) if fetch else loading.get_card(card).path]
    with named_downloads() as files, contextlib.nullcontext() if fetch else without_network():
        try:
            create_scorer(name, device="cpu")
        except ScorerError:
            if fetch or not files:
                raise
    return list(dict.fromkeys(files))
