"""Text from elsewhere, made safe for the medium that shows it.

Names of files, scorers, datasets and tensors come from strangers: they may hold line breaks that forge a heading,
codes that a terminal obeys, marks that turn the writing round, or markup. In each of these functions they stay text.
"""

from __future__ import annotations

import html
import os

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|`<>[]*#"})
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", "†": r"\dag{}", "‡": r"\ddag{}", "|": r"\textbar{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {character: f"{{{character}}}" for character in "[*"}  # at the start of a row they belong to the line break


def printable(text: str | os.PathLike[str]) -> str:
    """Text for one line of a terminal, a log or a cell: what does not print (newline, escape codes) is escaped."""
    text = portable(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def portable(path: str | os.PathLike[str]) -> str:
    """A path as text that every format can store; a byte of the name that is no UTF-8 appears as ``\\udcNN``."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def in_markdown(text: str) -> str:
    """Text for one line of Markdown: it begins no heading, list or code, and holds no link or HTML."""
    escaped = printable(text).translate(_MARKDOWN)
    return f"\\{escaped}" if escaped.startswith(("- ", "+ ", "---", "~~~")) else escaped


def in_latex(text: str) -> str:
    """Text for one line of LaTeX: it holds no command."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def in_html(text: str) -> str:
    """Text for one line of HTML: it holds no element, also inside an attribute."""
    return html.escape(printable(text))
