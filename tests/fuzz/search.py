"""The search of one target: ``python -m tests.fuzz.search TARGET [FOLDER] [libFuzzer options]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris
from torch._weights_only_unpickler import Unpickler

INSTRUMENTED = ("harness", "qualiclip_plugin", "yaml", "PIL", "tarfile")
"""Packages whose coverage guides the search; of torch only its reader of pickles, all of it takes minutes to load."""
DEFAULTS = ("-max_total_time=60", "-max_len=16384", "-timeout=120", "-rss_limit_mb=4096", "-print_final_stats=1")


def fuzz(name: str, options: list[str]) -> None:
    """Search one target from its seeds and corpus; ends the process where it stands, with its temporary files."""
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.fuzz.targets import CORPUS, TARGETS, read_declared
    Unpickler.load = atheris.instrument_func(Unpickler.load)
    target = TARGETS[name]

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            read_declared(target, data, Path(folder))

    seeds = tempfile.mkdtemp()
    for seed, data in target.seeds().items():
        Path(seeds, seed).write_bytes(data)
    atheris.Setup([sys.argv[0], *DEFAULTS, *options, seeds, str(CORPUS / name)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2:])
