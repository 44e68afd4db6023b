"""Image degradations as pure batched functions, and the tables that name them."""

from qualiclip_plugin.distortions.registry import (
    DISTORTIONS,
    GROUPS,
    TABLES,
    Distortion,
    get_distortion,
    get_table,
    make_table,
)

__all__ = ["DISTORTIONS", "GROUPS", "TABLES", "Distortion", "get_distortion", "get_table", "make_table"]
