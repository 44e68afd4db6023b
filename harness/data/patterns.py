"""What a dataset's specification may say in small languages of others: regular expressions and paths with names.

Both are short texts that could take hours or gigabytes: ``(a+)+b`` tries every way to split a text, and
``{name:>1000000000}`` pads it.
"""

from __future__ import annotations

import string
import time
from collections.abc import Mapping

import regex

from qualiclip_plugin.utils.errors import ConfigError

MATCHING_SECONDS = 10.0
"""Of computing time, for all rows of a table; a million file names take about one."""


class Pattern:
    """A regular expression that matches whole texts, within :data:`MATCHING_SECONDS` for all of them together.

    Raises:
        ConfigError: It is none.
    """

    def __init__(self, text: str, key: str) -> None:
        self.name, self.left = f"{key} {text[:100]!r}", MATCHING_SECONDS
        try:
            self._compiled = regex.compile(text)
        except (regex.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{self.name} is no regular expression: {error}") from error

    def match(self, text: str) -> Mapping[str, str | None] | None:
        """The named groups of a text that fits; none if it does not.

        Raises:
            ConfigError: The time is up.
        """
        started = time.thread_time()
        try:
            found = self._compiled.fullmatch(text, timeout=max(self.left, 0.001))
        except TimeoutError as error:
            raise ConfigError(f"{self.name} takes more than {MATCHING_SECONDS:g} s to match") from error
        self.left -= time.thread_time() - started
        return None if found is None else found.groupdict()


def fields(path: str) -> tuple[str, ...]:
    """The names in braces of a path such as ``images/{name}.png``.

    Raises:
        ConfigError: A brace without its partner, or more than a name between two.
    """
    try:
        parts = list(string.Formatter().parse(path))
    except ValueError as error:
        raise ConfigError(f"archive.path {path[:100]!r} is no path with names in braces: {error}") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name or form or conversion or set(name) & set("[]."):
            raise ConfigError(f"archive.path {path[:100]!r}: between braces stands the name of a column alone")
        names.append(name)
    return tuple(names)
