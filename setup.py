"""The README as a package index shows it, where pictures and links into the repository would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

RELATIVE = r"\((?!https?://|#)[^)\s]*\)"


def standalone(text: str) -> str:
    """Markdown without relative pictures, and with the text of relative links alone."""
    text = re.sub(rf"!\[[^]]*\]{RELATIVE}\n*", "", text)
    return re.sub(rf"\[([^]]*)\]{RELATIVE}", r"\1", text)


setup(
    long_description=standalone((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
