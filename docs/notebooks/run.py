"""Run the notebooks and store what they show.

    python docs/notebooks/run.py

Needs the dependency group ``docs`` and the extra ``train``.
"""

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Execute a notebook in place; warnings, progress and what differs between two runs are left out."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") == "stdout" or _shown(output)]
            cell.outputs = [_plain(output) for output in kept]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def _shown(output: Any) -> bool:
    return output.output_type == "execute_result"


def _plain(output: Any) -> Any:
    if _shown(output):
        output.data = {kind: content for kind, content in output.data.items() if kind == "image/png"}
    return output


if __name__ == "__main__":
    for notebook in sorted(Path(__file__).parent.glob("*.ipynb")):
        run(notebook)
        print(notebook)
