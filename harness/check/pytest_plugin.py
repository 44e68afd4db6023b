"""Where the fixture was: environments that were installed before it moved still name this module."""

from qualiclip_plugin.integrations.pytest_plugin import assert_quality

__all__ = ["assert_quality"]
