"""Downloads from a server that says the wrong length, sends pages, asks for a token or leads elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import requests
from huggingface_hub import constants

from qualiclip_plugin.utils import download as module
from qualiclip_plugin.utils.download import DownloadError, download, verify
from tests.support.local_server import COMMIT, LocalServer

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><title>Please log in</title>"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("length", ["", "abc", "-1", "1e3", "\u00b2"])
def test_a_file_without_a_length_is_taken_only_where_it_is_known(
    server: LocalServer, tmp_path: Path, length: str
) -> None:
    server.files, server.length = {"f": CONTENT}, lambda size: length
    if not length:
        server.cuts = [1000]
    with pytest.raises(DownloadError, match="does not say how long it is"):
        download(f"{server.address}/f", tmp_path / "f")
    assert names(tmp_path) == []
    server.cuts = []
    if not length:  # no client can tell where the answer ends otherwise
        download(f"{server.address}/f", tmp_path / "f", sha256=SHA256)
        assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_known_file_that_ends_early_without_a_length_is_refused(server: LocalServer, tmp_path: Path) -> None:
    server.files, server.length, server.cuts = {"f": CONTENT}, lambda size: "", [1000] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="not the expected file: sha256"):
        download(f"{server.address}/f", tmp_path / "f", sha256=SHA256)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("content", "kind"), [(PAGE, ""), (b"log in", "text/html; charset=utf-8")])
def test_a_web_page_is_no_file(server: LocalServer, tmp_path: Path, content: bytes, kind: str) -> None:
    server.files, server.kind = {"f.zip": content}, kind
    with pytest.raises(DownloadError, match="a web page in place of the file"):
        download(f"{server.address}/f.zip", tmp_path / "f.zip")
    assert names(tmp_path) == []


def test_no_more_than_the_limit_is_fetched(server: LocalServer, tmp_path: Path) -> None:
    server.files = {"f": CONTENT}
    for length in (str, lambda size: "10"):
        server.length = length
        with pytest.raises(DownloadError, match=r"more than 1000 bytes|sha256"):
            download(f"{server.address}/f", tmp_path / "f", limit=1000, sha256=SHA256)
        assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("location", "refused"), [("http://host/f", True), ("https://other/f", False), ("/f", False), ("//host/f", False)]
)
def test_https_is_not_left(location: str, refused: bool) -> None:
    response = requests.Response()
    response.status_code, response.url, response.headers["Location"] = 302, "https://host/a", location
    if refused:
        with pytest.raises(DownloadError, match="redirected from HTTPS to http://host/f"):
            module._refuse_plain_redirect(response)
    else:
        module._refuse_plain_redirect(response)


def test_the_hook_is_asked_at_every_redirect(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files, server.redirects, seen = {"f": CONTENT}, {"old": "/f"}, []
    monkeypatch.setattr(module, "_refuse_plain_redirect", lambda response, **_: seen.append(response.status_code))
    download(f"{server.address}/old", tmp_path / "f")
    assert seen == [302, 200]


@pytest.fixture
def hub(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    """The server as the Hub, with a gated repository."""
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.publish("someone/set", {"sub/f.zip": CONTENT})
    server.files[f"someone/model/resolve/{COMMIT}/a+b.pth"] = CONTENT
    server.token = "secret"  # noqa: S105
    return server


@pytest.mark.parametrize("path", ["datasets/someone/set/resolve/{}/sub/f.zip", "someone/model/resolve/{}/a%2Bb.pth"])
def test_files_of_the_hub_are_asked_for_with_the_users_token(
    hub: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    address = f"{hub.address}/{path.format(COMMIT)}"
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(DownloadError, match=r"fetched: .*; accept its terms on https://huggingface\.co/.* HF_TOKEN"):
        download(address, tmp_path / "f")
    monkeypatch.setenv("HF_TOKEN", "secret")
    for expected, message in (({"size": 10}, "more than 10 bytes"), ({"sha256": "0" * 64}, "not the expected file")):
        with pytest.raises(DownloadError, match=message):
            download(address, tmp_path / "f", **expected)
    download(address, tmp_path / "f", sha256=SHA256)
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_no_token_goes_elsewhere(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.files, server.token = {"a/b/resolve/main/f": CONTENT}, "secret"
    with pytest.raises(DownloadError, match="401"):
        download(f"{server.address}/a/b/resolve/main/f", tmp_path / "f")


def test_an_altered_file_says_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    verify(tmp_path / "f")
    (tmp_path / "f").write_bytes(CONTENT[1:])
    with pytest.raises(DownloadError, match=r"delete it and f\.sha256 to download it again"):
        verify(tmp_path / "f")
