"""Datasets from strangers: metadata, specifications, archives, and the manifest of the cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.data.cache import MANIFEST, check_cached
from harness.data.labels import labels_hash
from harness.data.metadata import local_spec
from harness.data.sources import load_local
from harness.data.spec import SHIPPED, read_spec
from harness.data.unpack import Limits, unpack
from harness.results.store import Store
from qualiclip_plugin.utils.errors import QualiCLIPError

_NAMES = [f"{number}.png" for number in range(4)]


def read_metadata(data: bytes, folder: Path) -> None:
    """As CSV, as JSON lines and as Parquet: what a stranger's folder may hold."""
    for name in _NAMES:
        (folder / name).touch()
    errors = []
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = folder / f"metadata{suffix}"
        path.write_bytes(data)
        try:
            spec = local_spec(path)
            if suffix != ".parquet":
                table = load_local(path, spec).labels
                labels_hash(table)
                Store(folder / "results").write_labels(spec.key, table)
        except QualiCLIPError as error:
            errors.append(error)
    if len(errors) == 3:
        raise errors[0]


def metadata_seeds() -> dict[str, bytes]:
    rows: list[dict[str, Any]] = [
        {"file_name": name, "mos": 1.5 * i, "std": 0.5, "votes": 20, "reference": "r", "distortion": "d", "level": i}
        for i, name in enumerate(_NAMES)
    ]
    frame = pd.DataFrame(rows)
    parquet = io.BytesIO()
    frame.rename(columns={"file_name": "image"}).to_parquet(parquet)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return {"csv": frame.to_csv(index=False).encode(), "jsonl": lines.encode(), "parquet": parquet.getvalue()}


def metadata() -> Any:
    """The JSON lines as a list."""
    return [json.loads(line) for line in metadata_seeds()["jsonl"].splitlines()]


def metadata_document(document: Any) -> bytes:
    rows = document if isinstance(document, list) else [document]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read_specification(data: bytes, folder: Path) -> None:
    path = folder / "spec.yaml"
    path.write_bytes(data)
    read_spec(path)


def specification_seeds() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml"))}


def specification() -> Any:
    """One of them as plain values."""
    return yaml.safe_load(specification_seeds()["koniq10k"])


_SMALL = Limits(bytes=2**20, ratio=100, free=2**18, files=50)


def unpack_archive(data: bytes, folder: Path) -> None:
    packed = folder / "packed"
    packed.write_bytes(data)
    try:
        unpack(packed, folder / "inside" / "out", _SMALL)
    except QualiCLIPError:
        if os.listdir(folder / "inside"):
            raise AssertionError("a refused archive left something behind") from None
        raise
    total = sum(path.stat().st_size for path in (folder / "inside").rglob("*") if path.is_file())
    if total > _SMALL.bytes + 10_000:
        raise AssertionError(f"{total} bytes passed the limit")


def archive_seeds() -> dict[str, bytes]:
    files = {"images/a.png": bytes(200), "images/b.png": bytes(range(256)), "labels.csv": b"name,mos\na,1\n"}
    found = {}
    for kind in ("", "gz", "bz2", "xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{kind}", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for name, content in files.items():
                info = tarfile.TarInfo(name if kind else f"{'long' * 40}/{name}")
                info.size = len(content)
                info.pax_headers = {"comment": "x" * 50}
                archive.addfile(info, io.BytesIO(content))
        found[f"tar-{kind or 'plain'}"] = buffer.getvalue()
    for label, method in (
        ("stored", zipfile.ZIP_STORED),
        ("deflated", zipfile.ZIP_DEFLATED),
        ("lzma", zipfile.ZIP_LZMA),
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
        found[f"zip-{label}"] = buffer.getvalue()
    return found


MANIFEST_SEED = json.dumps({"files": {"a.png": hashlib.sha256(b"picture").hexdigest()}}).encode()


def manifest_seeds() -> dict[str, bytes]:
    return {"manifest": MANIFEST_SEED}


def read_manifest(data: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(data)
    (folder / "a.png").write_bytes(b"picture")
    before = os.environ.get("QUALICLIP_CACHE")
    os.environ["QUALICLIP_CACHE"] = str(folder)
    try:
        check_cached({str(folder / "a.png"): hashlib.sha256(b"picture").hexdigest()})
    finally:
        os.environ.pop("QUALICLIP_CACHE")
        if before is not None:
            os.environ["QUALICLIP_CACHE"] = before
