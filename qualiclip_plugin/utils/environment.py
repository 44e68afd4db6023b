"""Origin of a result: versions of the libraries and the revision of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qualiclip_plugin.utils.errors import ConfigError

LIBRARIES = ("qualiclip-plugin", "torch", "open_clip_torch", "timm", "accelerate", "numpy", "Pillow")


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of the libraries that a training result depends on, and of ``more`` that are installed."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def user_cache() -> Path:
    """``$XDG_CACHE_HOME``, else ``~/.cache``.

    Raises:
        ConfigError: The user has no home folder, as in some containers.
    """
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.startswith("~"):
        raise ConfigError("this user has no home folder to keep files in: set HOME or XDG_CACHE_HOME")
    return Path(folder)


def processor_name() -> str:
    """What the processor is called, or its kind where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The revision of the checkout that this package runs from, ``+changes`` where files differ; None without one."""
    package = Path(__file__).parents[1]
    # An installed package may lie inside somebody else's repository, whose revision would say nothing.
    if _git(package, "ls-files", "--error-unmatch", str(Path(__file__))) is None:
        return None
    revision = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{revision}+changes" if revision and changes else revision


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 (arguments are constants of this module)
            ["git", *arguments],  # noqa: S607 (found on PATH, as a user would call it)
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
