"""Files of datasets from the network, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.data.spec import RemoteFile
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.download import DownloadError, download, verify
from qualiclip_plugin.utils.errors import DatasetError


def fetch(
    remote: RemoteFile,
    folder: Path,
    check: Callable[[Path], None] = lambda path: None,
    *,
    thorough: bool = False,
) -> Path:
    """Make sure that a file is in a folder, downloaded and verified.

    Args:
        folder: Where it is kept; an interrupted download leaves ``<file>.part`` there and continues from it.
        check: Raises a ``DatasetError`` where what was downloaded is not what it should be.
        thorough: Read a file that was there before in any case, because it is about to be used.

    Returns:
        The verified file.

    Raises:
        DatasetError: It cannot be obtained, or its size or hash is not the expected one.
    """
    target = inside(folder, Path(remote.file).name, error=DatasetError)
    try:
        # Asked first, because a download needs a place that can be written.
        if not target.exists():
            download(address(remote), target, sha256=remote.sha256, size=remote.bytes, check=check)
        verify(target, remote.sha256, thorough=thorough)
    except DownloadError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def address(remote: RemoteFile) -> str:
    """Where the file is."""
    if remote.address:
        return remote.address
    from huggingface_hub import hf_hub_url

    return hf_hub_url(remote.repository, remote.file, repo_type="dataset", revision=remote.revision or None)
