"""Hostile and odd input for every reader but the one of images, which has a file of its own.

Whatever the bytes: a result or a declared error, within the target's time and memory. ``tests/corpus/<target>`` keeps
what once ended otherwise.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qualiclip_plugin.utils.errors import QualiCLIPError
from tests.fuzz.mutations import CHANGES, changed, edited, edits
from tests.fuzz.targets import CORPUS, TARGETS, read_declared

OTHERS = [name for name in TARGETS if name != "images"]
DOCUMENTS = [name for name, target in TARGETS.items() if target.document]
KEPT = [(name, path) for name in OTHERS for path in sorted((CORPUS / name).glob("*"))]
LONGEST_MESSAGE = 2000
_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}


def check(name: str, data: bytes) -> QualiCLIPError | None:
    """Read bytes with a target; any other error, too long a time, too much memory or too long a message fails."""
    target = TARGETS[name]
    used, started = _megabytes(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        error = read_declared(target, data, Path(folder))
    assert time.process_time() - started < target.seconds
    assert _megabytes() - used < target.megabytes
    assert len(str(error)) < LONGEST_MESSAGE
    return error


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", OTHERS)
def test_the_seeds_are_read(name: str) -> None:
    seeds = TARGETS[name].seeds()
    errors = {seed: check(name, data) for seed, data in seeds.items()}
    # A network in a format of others would be too large for a seed.
    assert None in errors.values(), errors


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}-{path.name}" for name, path in KEPT])
def test_files_that_once_broke_a_reader(name: str, path: Path) -> None:
    assert check(name, path.read_bytes()) is not None, "it is refused"


def test_every_target_has_a_corpus() -> None:
    assert {name for name, _ in KEPT} == set(OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_edited_files(name: str) -> None:
    _search_bytes(name, 60)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_changed_documents(name: str) -> None:
    _search_documents(name, 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OTHERS)
def test_many_edited_files(name: str) -> None:
    _search_bytes(name, 3000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_many_changed_documents(name: str) -> None:
    _search_documents(name, 3000)


def _search_bytes(name: str, examples: int) -> None:
    seeds = TARGETS[name].seeds()

    @settings(max_examples=examples, **_SETTINGS)
    @given(seed=st.sampled_from(sorted(seeds)), changes=edits(sorted(seeds)))
    def search(seed: str, changes: list[Any]) -> None:
        check(name, edited(seeds[seed], changes, seeds))

    search()


def _search_documents(name: str, examples: int) -> None:
    target = TARGETS[name]
    assert target.document is not None
    document = target.document()

    @settings(max_examples=examples, **_SETTINGS)
    @given(changes=CHANGES)
    def search(changes: list[Any]) -> None:
        check(name, target.written(changed(document, changes)))

    search()
