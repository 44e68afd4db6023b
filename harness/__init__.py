"""Versioned, resumable comparisons of no-reference image quality metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import compare, compare_all, evaluate, load_scores

__all__ = ["compare", "compare_all", "evaluate", "load_scores"]


def __getattr__(name: str) -> Any:
    # The command line imports this package for its help text, which must not wait for pandas.
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
