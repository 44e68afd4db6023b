"""Image degradations as pure batched functions, and the tables that name them."""

from qualiclip_plugin.distortions.registry import (
    DISTORTIONS,
    GROUP_COLOURS,
    GROUPS,
    TABLES,
    Distortion,
    get_distortion,
    get_table,
    make_table,
)

__all__ = [
    "DISTORTIONS",
    "GROUPS",
    "GROUP_COLOURS",
    "TABLES",
    "Distortion",
    "get_distortion",
    "get_table",
    "make_table",
]
