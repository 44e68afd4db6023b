"""Coverage-guided search: ``python -m tests.fuzz TARGET [FOLDER] [libFuzzer options]``, or ``all`` in turn.

Needs ``atheris`` (``tox -e fuzz``). Inputs that reach new code are kept in FOLDER; one that ends in anything but a
result or a declared error, takes too long or too much memory, is written to the current folder as ``crash-*``,
``timeout-*`` or ``oom-*``, and belongs into ``tests/corpus/<target>``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
from torch._weights_only_unpickler import Unpickler

INSTRUMENTED = ("harness", "qualiclip_plugin", "yaml", "PIL", "tarfile")
"""Packages whose coverage guides the search; of torch only its reader of pickles, all of it takes minutes to load."""
DEFAULTS = ("-max_total_time=60", "-max_len=16384", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1")


def fuzz(name: str, options: list[str]) -> None:
    """Search one target from its seeds and corpus; ends the process."""
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


def main() -> int:
    """Search one target, or every one in a process of its own."""
    name, options = sys.argv[1], sys.argv[2:]
    if name != "all":
        fuzz(name, options)
        return 0
    from tests.fuzz.targets import TARGETS

    codes = {}
    for target in TARGETS:
        print(f"--- {target}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", target, *options]
        codes[target] = subprocess.run(command, check=False).returncode
    failed = [target for target, code in codes.items() if code]
    print(f"failed: {', '.join(failed) or 'none'} of {len(codes)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
