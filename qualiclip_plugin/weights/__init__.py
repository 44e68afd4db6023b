"""Weights: their names and cards, reading and writing them safely, and the model made from them."""

from qualiclip_plugin.weights.loading import load_model

__all__ = ["load_model"]
