"""QualiCLIP for pyiqa: the model, its weights and its training (arXiv 2403.11176)."""

__version__ = "0.1.0"
