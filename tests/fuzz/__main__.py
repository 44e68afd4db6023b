"""Coverage-guided search: ``python -m tests.fuzz TARGET [FOLDER] [libFuzzer options]``, or ``all`` in turn.

Needs ``atheris`` (``tox -e fuzz``). Inputs that reach new code are kept in FOLDER; one that ends in anything but a
result or a declared error, takes too long or too much memory, is written to the current folder as ``crash-*``,
``timeout-*`` or ``oom-*``, and belongs into ``tests/corpus/<target>``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tests.fuzz.targets import TARGETS


def search(name: str, options: list[str]) -> int:
    """Search one target in a process of its own, whose temporary files go with it; its exit code."""
    command = [sys.executable, "-m", "tests.fuzz.search", name, *options]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, env={**os.environ, "TMPDIR": folder}, check=False).returncode


def main() -> int:
    """Search one target or every one."""
    name, options = sys.argv[1], sys.argv[2:]
    codes = {}
    for target in TARGETS if name == "all" else [name]:
        print(f"--- {target}", flush=True)
        codes[target] = search(target, options)
    failed = [target for target, code in codes.items() if code]
    print(f"failed: {', '.join(failed) or 'none'} of {len(codes)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
