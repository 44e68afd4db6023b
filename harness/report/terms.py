"""Words of the report: what each figure is called and means, and what each kind of training is called."""

from __future__ import annotations

from harness.results.store import slug

FIGURE_NAMES = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc_raw": "PLCC raw",
    "plcc_fit": "PLCC fitted",
    "rmse": "RMSE",
    "d_test": "D-test",
    "l_test": "L-test",
    "p_test": "P-test",
}
MEANINGS = {
    "srcc": "Spearman's rank correlation of score and opinion: is the order the same? −1 to 1.",
    "krcc": "Kendall's tau-b of score and opinion: agreement over all pairs of images. −1 to 1.",
    "plcc_raw": "Pearson's correlation of score and opinion as they are. −1 to 1.",
    "plcc_fit": "Pearson's correlation after a logistic curve was fitted from scores to opinions. −1 to 1.",
    "rmse": "Root mean squared error after the fit, in units of the opinions; lower is better.",
    "d_test": "Can one threshold tell pristine from degraded images? 0.5 (no better than chance) to 1.",
    "l_test": "Mean rank correlation of score and severity within one photograph and one distortion. −1 to 1.",
    "p_test": "Share of image pairs that the scorer orders as PSNR, SSIM and GMSD agree they must be. 0 to 1.",
}
BLOCKS = (
    (False, "Opinion-unaware", "Trained without any human opinion score."),
    (True, "Opinion-aware", "Trained on human opinion scores; a dataset seen in training is marked."),
    (None, "Training unknown", "Nothing is recorded about their training."),
)
TESTS = {
    "bootstrap": (
        "Paired bootstrap",
        "whole contents are drawn, or images where contents are not known",
    ),
    "williams": ("Williams' t", "two dependent rank correlations with the same opinions"),
    "f": ("F-test", "residual variance after the fit; it assumes Gaussian residuals"),
}
"""Name and one line on each significance test."""


def dataset_page(dataset: str) -> str:
    """File name of a dataset's page."""
    return f"dataset-{slug(dataset)}.html"
