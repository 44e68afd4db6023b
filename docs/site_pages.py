"""Pages of the site that stand elsewhere in the repository, and links that leave the folder of the documents."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "lite.md": "results/lite/README.md",
    "simulations.md": "results/statistics/README.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Page of the site to the file that holds its text."""
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[[^]]*\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """A hook of MkDocs: add the pages, and the pictures in them."""
    for page, place in PAGES.items():
        source = ROOT / place
        text = source.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for picture in IMAGE.findall(text):
            files.append(File.generated(config, picture, abs_src_path=str(source.parent / picture)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A hook of MkDocs: links lead to pages of the site; of a link to anything else only the text stays."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if "://" in target or not os.path.exists(ROOT / place):
            return link[0]
        inside = {own: name for name, own in PAGES.items()}.get(place, place.removeprefix("docs/"))
        if inside == place:
            return text or ""
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(led, markdown)
