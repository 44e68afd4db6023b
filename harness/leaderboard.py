"""The stored cells as tables: plain numbers in CSV, a readable page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from harness.figures import FIGURES, LOWER_IS_BETTER
from harness.store import Store

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("scorer", "dataset", "subset", "n", "n_failed", *FIGURES, "seconds")
DIGITS = {"rmse": 3}


def table(cells: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per scorer, dataset and subset, with the columns ``COLUMNS`` and ``reason``; best first."""
    import pandas as pd

    rows = [row for cell in cells for row in _rows(cell)]
    types = {"n": "Int64", "n_failed": "Int64", **dict.fromkeys((*FIGURES, "seconds"), "float64")}
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "reason"]).astype(types)
    order = frame.assign(rank=-frame["srcc"].fillna(frame["l_test"]).fillna(-2))
    order = order.sort_values(["dataset", "subset", "rank", "scorer"], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def to_csv(frame: pd.DataFrame) -> str:
    """Plain numbers; an undefined figure is an empty cell."""
    return frame[list(COLUMNS)].to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_markdown(frame: pd.DataFrame, cells: Iterable[Mapping[str, Any]] = ()) -> str:
    """A section per dataset and subset: best value in bold, reasons of empty cells below, then versions."""
    parts = ["# Leaderboard", _PREFACE]
    by_name = {(cell["scorer"]["name"], cell["dataset"]["name"]): cell for cell in cells}
    for (dataset, subset), group in frame.groupby(["dataset", "subset"], sort=True):
        parts.append(f"## {dataset}" + (f", {subset}" if subset != "all" else ""))
        parts.append(_grid(group))
        parts.extend(_notes(group))
        made = [by_name[name, dataset] for name in group["scorer"] if (name, dataset) in by_name]
        parts.extend(_provenance(made))
    return "\n\n".join(parts) + "\n"


def write_tables(store: Store) -> pd.DataFrame:
    """Write ``leaderboard.csv`` and ``leaderboard.md`` of all stored cells; returns the table.

    Raises:
        StoreError: A cell cannot be read, or the folder not be written.
    """
    cells = list(store.cells())
    frame = table(cells)
    store.write_text(store.root / "leaderboard.csv", to_csv(frame))
    store.write_text(store.root / "leaderboard.md", to_markdown(frame, cells))
    return frame


_PREFACE = (
    "Signed values: a scorer whose declared direction is lower-is-better is negated once, nothing is made "
    "positive. Best in bold. `results/README.md` explains every column."
)


def _rows(cell: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    name = {"scorer": cell["scorer"]["name"], "dataset": cell["dataset"]["name"]}
    if not cell["subsets"]:
        yield {**name, "subset": "all", "reason": {"all": cell["reason"]}}
    for subset, group in cell["subsets"].items():
        figures = group["figures"]
        yield {
            **name,
            "subset": subset,
            "n": group["n"],
            "n_failed": group["n_failed"],
            **{figure: figures[figure]["value"] for figure in FIGURES},
            "seconds": cell["seconds"] if subset == "all" else None,
            "reason": {figure: figures[figure].get("reason", "") for figure in FIGURES},
        }


def _grid(group: pd.DataFrame) -> str:
    import pandas as pd

    shown = [name for name in COLUMNS if name not in ("dataset", "subset", "seconds")]
    shown = [name for name in shown if name not in FIGURES or group[name].notna().any()]
    cells = pd.DataFrame({name: group[name].map(lambda value, name=name: _text(value, name)) for name in shown})
    for name in (name for name in shown if name in FIGURES):
        best = group[name].min() if name in LOWER_IS_BETTER else group[name].max()
        wins = group[name].round(_digits(name)) == round(best, _digits(name))
        cells.loc[wins, name] = "**" + cells.loc[wins, name] + "**"
    align = ["left" if name == "scorer" else "right" for name in shown]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=align)


def _notes(group: pd.DataFrame) -> list[str]:
    notes: dict[str, list[str]] = {}
    shown = [name for name in FIGURES if group[name].notna().any()] or list(FIGURES[:1])
    for scorer, reasons in zip(group["scorer"].tolist(), group["reason"].tolist(), strict=True):
        if "all" in reasons:
            notes.setdefault(_one_line(reasons["all"]), []).append(scorer)
        for name in shown:
            if reasons.get(name):
                notes.setdefault(_one_line(reasons[name]), []).append(f"{scorer} {name}")
    if not notes:
        return []
    return ["Empty cells:", "\n".join(f"- {', '.join(names)}: {reason}" for reason, names in notes.items())]


def _provenance(cells: list[Mapping[str, Any]]) -> list[str]:
    measured = [cell for cell in cells if cell["subsets"]]
    if not measured:
        return []
    dates = sorted({cell["date"][:10] for cell in measured})
    devices = sorted({device for cell in measured for device in cell["device"]})
    versions = sorted({f"{k} {v}" for cell in measured for k, v in cell["versions"].items()})
    lines = [f"Measured {' and '.join(dates)} on {'; '.join(devices)}. Versions: {', '.join(versions)}."]
    for cell in measured:
        if cell["status"] != "complete":
            failed = "; ".join(f"{f['file_name']}: {f['error']}" for f in cell["failures"][:5])
            lines.append(f"{cell['scorer']['name']}: {cell['status']}" + (f" ({failed})" if failed else ""))
    return lines


def _one_line(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= 300 else text[:297] + "..."


def _digits(name: str) -> int:
    return DIGITS.get(name, 4)


def _text(value: Any, name: str) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    return f"{value:.{_digits(name)}f}" if name in FIGURES else str(value)
