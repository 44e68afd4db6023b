"""The site shows only the text of links that leave the folder of the documents: it does not hold their targets."""

import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^]]*)\]\(\.\./[^)\s]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A hook of MkDocs: a page's Markdown before it is rendered."""
    return LINK.sub(r"\1", markdown)
