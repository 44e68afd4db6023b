"""Words of the report: figures, kinds of training, tests."""

from __future__ import annotations

from harness.results.store import slug
from harness.statistics import STATISTICS

FIGURE_NAMES = {key: statistic.title for key, statistic in STATISTICS.items()}
MEANINGS = {key: statistic.meaning.replace("-1", "\N{MINUS SIGN}1") for key, statistic in STATISTICS.items()}
BLOCKS = (
    (False, "Opinion-unaware", "Trained without any human opinion score."),
    (True, "Opinion-aware", "Trained on human opinion scores; a dataset seen in training is marked."),
    (None, "Training unknown", "Nothing is recorded about their training."),
)
TESTS = {
    "flip": (
        "Sign flips",
        "if both are equally good, the difference on each photograph could as well have the opposite sign",
    ),
    "williams": ("Williams' t", "two dependent rank correlations with the same opinions, of independent images"),
    "pitman": ("Pitman's test", "variance that the fit leaves, on the same independent images"),
}
"""Name and one line on each significance test."""


def dataset_page(dataset: str) -> str:
    """File name of a dataset's page."""
    return f"dataset-{slug(dataset)}.html"
