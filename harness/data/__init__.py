"""Datasets: their definitions (``harness/data/catalogue/*.yaml``), download, checks, reading and decoding."""
