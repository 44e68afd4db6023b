"""Names, order of choice, downloads that are verified or refused, and files that are not what they should be."""

from __future__ import annotations

import errno
import hashlib
import io
import pickle
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.weights import loading as module
from qualiclip_plugin.weights.checkpoint import read_weights, save_checkpoint
from qualiclip_plugin.weights.loading import Card, fetch, get_card, load_cards, load_model, resolve
from qualiclip_plugin.weights.pickles import load_pickle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weight cache for each test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("QUALICLIP_WEIGHTS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "torch" / "hub" / "pyiqa"


class Handler(BaseHTTPRequestHandler):
    """Serves ``content``; ``/short`` promises more than it sends, ``/missing`` is a 404."""

    def __init__(self, *args, content: bytes, hits: list[str], **kwargs):
        self.content, self.hits = content, hits
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.hits.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        body = {"/page": b"<html>log in</html>", "/other": b"nothing"}.get(self.path, self.content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) * (2 if self.path == "/short" else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tiny_checkpoint: Path) -> Iterator[ThreadingHTTPServer]:
    """A local server of the tiny checkpoint; ``hits`` lists the requested paths."""
    hits: list[str] = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, content=tiny_checkpoint.read_bytes(), hits=hits))
    httpd.hits = hits
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def card(server: ThreadingHTTPServer, *paths: str, sha256: str | None = None) -> Card:
    base = f"http://127.0.0.1:{server.server_port}"
    return Card(
        name="served", description="", file="served.safetensors", format="plugin", licence="", training_data=(),
        opinion_aware=False, addresses=tuple(base + path for path in paths), sha256=sha256,
    )  # fmt: skip


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock")


def test_every_card_is_complete():
    assert {
        "official",
        "clip",
        "lite",
        "qualiclip+",
        "qualiclip+-clive",
        "qualiclip+-flive",
        "qualiclip+-spaq",
    } <= set(load_cards())
    for entry in load_cards().values():
        assert entry.licence
        assert entry.training_data
        assert entry.packaged or entry.addresses
        assert entry.opinion_aware == bool(entry.seen)
        assert entry.base is None or entry.base in load_cards()


def test_download_is_stored_recorded_and_not_repeated(server, own_cache, tiny_checkpoint):
    path = fetch(card(server, "/file"))
    assert path.read_bytes() == tiny_checkpoint.read_bytes()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (own_cache / "served.safetensors.sha256").read_text().split()[0] == digest
    fetch(card(server, "/file"))
    assert server.hits == ["/file"]
    assert files_in(own_cache) == ["served.safetensors", "served.safetensors.sha256"]


@pytest.mark.parametrize("plain", [True, False])
def test_either_name_of_a_file_is_found(own_cache, tiny_checkpoint, plain):
    entry = get_card("qualiclip+")
    own_cache.mkdir(parents=True)
    placed = own_cache / ("QualiCLIP+_koniq.pth" if plain else "QualiCLIP%2B_koniq.pth")
    placed.write_bytes(tiny_checkpoint.read_bytes())
    assert fetch(entry) == placed


def test_a_download_has_the_name_that_pyiqa_looks_for(own_cache):
    from pyiqa.archs.arch_util import get_url_from_name

    for part in ("koniq", "clive", "flive", "spaq"):
        theirs = get_url_from_name(f"QualiCLIP+_{part}.pth")
        entry = get_card("qualiclip+" if part == "koniq" else f"qualiclip+-{part}")
        assert theirs in entry.addresses
        assert entry.path == own_cache / theirs.rpartition("/")[2]


def test_second_address_is_used_when_the_first_fails(server):
    assert fetch(card(server, "/missing", "/file")).exists()
    assert server.hits == ["/missing", "/file"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", "IncompleteRead"),
        ("/page", "a web page in place of the file"),
        ("/other", "no weights file"),
        ("/missing", "404"),
    ],
)
def test_bad_download_leaves_nothing(server, own_cache, path, reason):
    with pytest.raises(WeightsError, match=reason):
        fetch(card(server, path))
    assert files_in(own_cache) == []


def test_wrong_hash_is_refused(server, own_cache):
    with pytest.raises(WeightsError, match=r"sha256 .* expected"):
        fetch(card(server, "/file", sha256="0" * 64))
    assert files_in(own_cache) == []


def test_altered_cache_file_is_named(server):
    path = fetch(card(server, "/file"))
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(WeightsError, match=r"served\.safetensors is not the file it should be"):
        fetch(card(server, "/file"))


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_cache_is_used_without_a_record(server, own_cache, refuse_writing, reason):
    fetch(card(server, "/file"))
    (own_cache / "served.safetensors.sha256").unlink()
    refuse_writing(reason)
    assert fetch(card(server, "/file")).exists()
    assert files_in(own_cache) == ["served.safetensors"]


def test_a_full_disk_is_no_read_only_cache(server, own_cache, refuse_writing):
    fetch(card(server, "/file"))
    (own_cache / "served.safetensors.sha256").unlink()
    refuse_writing(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        fetch(card(server, "/file"))


def test_offline_error_says_what_to_do(own_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        load_model("official")
    message = str(caught.value)
    for part in ("'official'", "https://huggingface.co/", str(own_cache / "QualiCLIP.pth"), 'weights="lite"'):
        assert part in message


def test_unreachable_server_is_an_error_not_another_model(server):
    unreachable = card(server, "/file")
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match="could not be fetched"):
        fetch(unreachable)


def test_order_of_choice(monkeypatch, tiny_checkpoint, own_cache):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("lite") == get_card("lite").path
    monkeypatch.setenv("QUALICLIP_WEIGHTS", str(tiny_checkpoint))
    assert resolve() == tiny_checkpoint
    assert resolve("lite") == get_card("lite").path  # an explicit argument goes first
    monkeypatch.setenv("QUALICLIP_WEIGHTS", "lite")
    assert resolve(None) == get_card("lite").path
    monkeypatch.delenv("QUALICLIP_WEIGHTS")
    with pytest.raises(WeightsError, match="official"):
        resolve()  # the default is official, and nothing takes its place


def test_unknown_name_suggests_near_ones():
    with pytest.raises(WeightsError, match=r"did you mean qualiclip\+"):
        resolve("qualiclip+-klive")


class Payload:
    """A pickle that writes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickle_that_wants_to_run_code_is_refused(tmp_path):
    witness = tmp_path / "ran"
    torch.save({"visual.x": Payload(witness)}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(witness)))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(WeightsError, match=rf"{name}.*(run code|not a readable)"):
            read_weights(tmp_path / name)
    assert not witness.exists()


def asking_for(what: bytes) -> bytes:
    """A pickle that calls a function with 10**9."""
    return b"\x80\x02c" + what + b"\nJ\x00\xca\x9a;\x85R."


@pytest.mark.parametrize("what", [b"builtins\nbytearray", b"torch.storage\nUntypedStorage", b"torch\nTensor"])
@pytest.mark.parametrize("form", ["plain", "zipped", "behind an archive"])
def test_a_pickle_that_asks_for_memory_is_refused_before_it_is_loaded(tmp_path, monkeypatch, what, form):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    path, content = tmp_path / "large.pth", asking_for(what)
    if form != "plain":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("large/data.pkl", content if form == "zipped" else b"\x80\x02}.")
            archive.writestr("large/version", "3")
        # torch takes what begins like a pickle for one, whatever follows.
        content = packed.getvalue() if form == "zipped" else content + packed.getvalue()
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"large\.pth was refused: it asks for .* any amount of memory"):
        read_weights(path)


def test_containers_that_stand_for_many_are_refused(tmp_path):
    values = [0.0]
    for _ in range(40):
        values = [values, values]
    torch.save({"a": torch.zeros(3), "b": values}, tmp_path / "many.pth")
    with pytest.raises(WeightsError, match=r"many\.pth was refused: what it holds is larger than the file"):
        load_pickle(tmp_path / "many.pth")


def test_a_state_of_plain_values_is_loaded(tmp_path):
    state = {"optimizer": {"betas": (0.9, 0.99), "step": torch.ones(2)}, "scaler": {}, "names": ["a"], "none": None}
    torch.save(state, tmp_path / "state.pt")
    assert str(load_pickle(tmp_path / "state.pt")) == str(state)


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "program.pt")
    with pytest.raises(WeightsError, match=r"program\.pt was refused: it is a TorchScript archive"):
        read_weights(tmp_path / "program.pt")


@pytest.mark.parametrize("keep", [0, 5, 100, 1000, -1])
def test_truncated_file_is_named(tmp_path, tiny_checkpoint, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        read_weights(path)


def test_truncated_torch_file_is_named(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:1500])
    with pytest.raises(WeightsError, match=r"cut\.pth"):
        read_weights(tmp_path / "cut.pth")


def test_wrong_architecture_names_the_mismatch(tmp_path, tiny_model):
    path = tmp_path / "wrong.safetensors"
    save_checkpoint(path, tiny_model, {})
    header = read_weights(path).header
    del header["sha256"]  # the seal of the file as it was written
    header["backbone"]["vision_cfg"] = {**header["backbone"]["vision_cfg"], "width": 16}
    import json

    save_file(read_weights(path).tensors, path, metadata={"qualiclip": json.dumps(header)})
    with pytest.raises(WeightsError, match=r"wrong\.safetensors does not fit.* is \("):
        load_model(path)


def test_file_of_something_else_is_named(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors is no QualiCLIP.*weight"):
        load_model(tmp_path / "other.safetensors")


def test_learned_prompts_alone_are_no_model(official_plus, monkeypatch):
    with pytest.raises(WeightsError, match="only learned prompts"):
        load_model(official_plus)


def test_checkpoint_round_trip(tmp_path, tiny_model, images):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model, {"name": "x", "figures": [1, 2]})
    assert read_weights(path).header["card"] == {"name": "x", "figures": [1, 2]}
    again = load_model(path, inference=False).eval()
    assert torch.equal(again(images), tiny_model.eval()(images))


def test_a_card_that_no_reader_would_accept_is_not_written(tmp_path, tiny_model):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model, {"srcc": 0.5})
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"model\.safetensors was not written: .*not JSON compliant"):
        save_checkpoint(path, tiny_model, {"srcc": float("nan")})
    assert path.read_bytes() == before


def test_half_precision_file_scores_nearly_the_same(tmp_path, tiny_model, images):
    save_checkpoint(tmp_path / "half.safetensors", tiny_model, {}, torch.float16)
    half = load_model(tmp_path / "half.safetensors")(images)
    torch.testing.assert_close(half, tiny_model.eval()(images), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("option", "value"), [("backbone", "ViT-B-32"), ("temperature", 5.0), ("positional_embedding", True)]
)
def test_what_a_file_carries_itself_cannot_be_chosen(option, value):
    with pytest.raises(WeightsError, match=rf"lite\.safetensors carries all that it needs: {option} cannot be"):
        load_model("lite", **{option: value})


def test_packaged_weights_need_no_cache(own_cache):
    assert get_card("lite").path.is_relative_to(module.PACKAGE)
    assert load_model("lite")(torch.rand(1, 3, 64, 64)).shape == (1, 1)
    assert not own_cache.exists()
