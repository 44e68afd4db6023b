"""A static report of the stored results: one folder of HTML, no server, no request to anywhere.

Charts are SVG drawn here, so that every page reads without JavaScript, which only sorts, shows pictures under
the pointer and picks gMAD pairs. All text from files and metadata is escaped by the templates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report import charts, terms
from harness.report.cell_page import cell as cell_page
from harness.report.comparisons import contests
from harness.report.data import Cell, Contest, load_cells
from harness.report.dataset_page import dataset as dataset_page
from harness.report.overview import overview, versions
from harness.report.pictures import SIZES, Gallery, open_sources
from harness.results.store import Store, StoreError, no_results
from qualiclip_plugin.gallery import TEMPLATES as THEME
from qualiclip_plugin.gallery import map_drawer
from qualiclip_plugin.utils.atomic import inside
from qualiclip_plugin.utils.errors import ConfigError, disk_errors
from qualiclip_plugin.utils.page_folder import check_page_folder, page_folder
from qualiclip_plugin.utils.progress import track
from qualiclip_plugin.utils.shown import printable

if TYPE_CHECKING:
    from jinja2 import Environment

    from harness.data.spec import DatasetSpec

TEMPLATES = Path(__file__).parent / "templates"
KIND, MADE_BY = "report", "iqa-harness report"


@dataclass(frozen=True)
class Page:
    """A page about all results.

    Attributes:
        address: Its file; its template is ``ADDRESS.j2`` in ``templates``.
        content: What its template shows, from all cells and the comparisons by dataset.
    """

    address: str
    title: str
    content: Callable[[Sequence[Cell], Mapping[str, Contest | None]], dict[str, Any]]


PAGES = (
    Page("index.html", "Leaderboard", overview),
    Page("versions.html", "Versions", lambda cells, contests: versions(cells)),
)
"""The first one, and those after the datasets' pages."""


def write_report(
    results: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    datasets: Iterable[str] = (),
    include: Iterable[Path] = (),
    draws: int = 2000,
    maps: str | None = None,
) -> Path:
    """Write the report and return its first page.

    Args:
        output: Folder of the report; an earlier report there is replaced, a folder with anything else refused.
        datasets: Where pictures come from: names, folders or ``NAME=FOLDER``.
        include: Folders with further dataset YAML files.
        draws: Resamples of the significance tests; 0 leaves them out.
        maps: Weights of this project (``lite``) whose quality maps lie behind the pictures; ``None``: no maps.

    Raises:
        ConfigError: ``output`` holds something else, or there are no results.
        StoreError: Results cannot be read, or the report not be written.
        QualiCLIPError: A dataset given for pictures cannot be opened, or two have the same name; or the weights of
            the maps cannot be loaded.
    """
    from harness.data.spec import catalogue
    from qualiclip_plugin.weights.loading import load_model

    target = Path(output)
    check_page_folder(target, KIND, MADE_BY)
    store = Store(results)
    cells = load_cells(store)
    if not cells:
        raise ConfigError(no_results(results))
    names = sorted({cell.dataset for cell in cells})
    specs = catalogue(include)
    draw_map = None if maps is None else map_drawer(load_model(maps), SIZES["large"][0])
    sources, lacking = open_sources(datasets, specs, names)
    with disk_errors(target, StoreError), page_folder(target, KIND, MADE_BY) as partial:
        compared = contests(store, cells, draws=draws)
        _write_site(partial, cells, compared, Gallery(partial, sources, draw_map), lacking, specs)
    return target / "index.html"


def _write_site(
    folder: Path,
    cells: list[Cell],
    compared: Mapping[str, Contest | None],
    gallery: Gallery,
    lacking: dict[str, str],
    specs: Mapping[str, DatasetSpec],
) -> None:
    site = environment()
    site.globals["map_of"] = gallery.map_of
    names = sorted(compared)
    first, *others = ((page.title, page.address) for page in PAGES)
    links = [first, *((name, terms.dataset_page(name)) for name in names), *others]

    def write(page: str, template: str, **content: Any) -> None:
        text = site.get_template(template).render(links=links, page=page, lacking=lacking, **content)
        inside(folder, page).write_text(text, encoding="utf-8", errors="backslashreplace")

    for page in PAGES:
        write(page.address, f"{page.address}.j2", **page.content(cells, compared))
    for name in names:
        own = [cell for cell in cells if cell.dataset == name]
        content = dataset_page(name, own, compared[name], gallery, specs.get(name))
        write(terms.dataset_page(name), "dataset.html.j2", **content)
    for cell in track(cells, "Drawing cells", len(cells)):
        write(cell.page, "cell.html.j2", **cell_page(cell, gallery))
    (folder / "style.css").write_text(stylesheet(), encoding="utf-8")
    (folder / "app.js").write_text(_joined(THEME / "theme.js", TEMPLATES / "app.js"), encoding="utf-8")


def environment() -> Environment:
    """Templates that escape everything and fail on an unknown name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    site = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        # Escaping leaves line breaks, escape codes and marks that turn the writing round.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    site.filters["number"] = charts.number
    site.globals["dataset_page"] = terms.dataset_page
    site.globals["map_of"] = lambda address: ""
    return site


def stylesheet() -> str:
    """The style of the report's pages: the colours and elements that all pages of this project have, and its own."""
    return _joined(THEME / "theme.css", TEMPLATES / "style.css")


def _joined(*files: Path) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in files)
