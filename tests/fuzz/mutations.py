"""Valid files made invalid: bytes edited in place, or values of a JSON document exchanged."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = tuple[str, int, Any]
"""What is done, where, and with what."""

# Early bytes more often: headers.
_WHERE = st.one_of(st.integers(0, 40), st.integers(0, 200), st.integers(0, 4000))
_EXTREME = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
_NUMBER = st.builds(
    lambda value, size, order: (value % 256**size).to_bytes(size, order),
    _EXTREME,
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["big", "little"]),
)


def edits(names: Sequence[str]) -> st.SearchStrategy[list[Edit]]:
    """Some edits, among them splices with other seeds of the given names."""
    kinds = (
        st.tuples(st.just("overwrite"), _WHERE, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("overwrite"), _WHERE, _NUMBER),
        st.tuples(st.just("insert"), _WHERE, st.binary(min_size=1, max_size=64)),
        st.tuples(st.just("delete"), _WHERE, st.integers(1, 200)),
        st.tuples(st.just("repeat"), _WHERE, st.integers(1, 200)),
        st.tuples(st.just("cut"), _WHERE, st.none()),
        st.tuples(st.just("splice"), _WHERE, st.sampled_from(names)),
    )
    return st.lists(st.one_of(*kinds), min_size=1, max_size=6)


def edited(data: bytes, changes: Sequence[Edit], seeds: Mapping[str, bytes]) -> bytes:
    """Apply edits one after another; places beyond the end wrap around."""
    for kind, where, what in changes:
        at = where % (len(data) + 1)
        head, tail = data[:at], data[at:]
        if kind == "overwrite":
            data = head + what + tail[len(what) :]
        elif kind == "insert":
            data = head + what + tail
        elif kind == "delete":
            data = head + tail[what:]
        elif kind == "repeat":
            data = head + tail[:what] + tail
        elif kind == "cut":
            data = head
        else:
            data = head + seeds[what][at:]
    return data


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308),
    *("", "x", "\ud800", "a\nb", "../x", "x" * 300, [], [None], {}, {"": None}, [[[]]], {"value": None}),
)
"""What stands in the place of a value that had another type, size or sign."""

CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from((*ODD_VALUES, "delete", "rename"))), max_size=3)


def changed(document: Any, changes: Sequence[tuple[int, Any]]) -> Any:
    """A copy of a JSON document with some of its values exchanged, deleted or renamed."""
    result = copy.deepcopy(document)
    for number, what in changes:
        places = list(_places(result))
        if not places:
            break
        holder, key = places[number % len(places)]
        if what == "delete":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(what)
    return result


def _places(value: Any) -> Any:
    """Every place in a document that holds a value: its container and its key there."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
            yield value, key
            yield from _places(inner)
