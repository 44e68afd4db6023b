"""The optional parts of the installation: what each brings, and which of them a missing module belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement

DISTRIBUTION = "qualiclip-plugin"
PACKAGES = {"jinja2": "Jinja2", "skimage": "scikit-image", "pkg_resources": "setuptools", "yaml": "PyYAML"}
"""Modules that are called otherwise than the package that brings them; beyond ``_`` for ``-``."""


def extras() -> dict[str, list[Requirement]]:
    """What every extra adds to the core, by its name; without those that only name other extras."""
    needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    found = {}
    for name in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ():
        own = [one for one in needed if _only_of(one, name)]
        if any(plain(one.name) != DISTRIBUTION for one in own):
            found[name] = own
    return found


def _only_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def plain(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def advice(missing: ModuleNotFoundError) -> str | None:
    """What to install where a module is missing; ``None`` where no extra brings it."""
    module = (missing.name or "").partition(".")[0]
    package = plain(PACKAGES.get(module, module))
    for name, needed in extras().items():
        for one in needed:
            if plain(one.name) == package:
                return f'{one.name}{one.specifier} is missing: pip install "{DISTRIBUTION}[{name}]"'
    return None


def core_packages() -> set[str]:
    """Every package that the installation without extras brings, and that is here."""
    found: set[tuple[str, str]] = set()
    wanted = {(DISTRIBUTION, "")}
    while wanted:
        found |= wanted
        needed = [one for package, extra in wanted for one in _requirements(package, extra)]
        wanted = {(plain(one.name), extra) for one in needed for extra in ("", *one.extras)} - found
    return {package for package, _ in found if is_installed(package)}


def _requirements(package: str, extra: str) -> list[Requirement]:
    if not is_installed(package):  # of another system
        return []
    needed = [Requirement(line) for line in metadata.requires(package) or ()]
    return [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]


def is_installed(package: str) -> bool:
    """Whether a package is here, in whichever version."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def installed_bytes(packages: Iterable[str]) -> int:
    """What the files of packages take, as their lists of files say."""
    return sum(file.size or 0 for package in packages for file in metadata.files(package) or ())
