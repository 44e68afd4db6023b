"""Datasets: what they are (``harness/data/catalogue/*.yaml``), how they are fetched, checked, read and decoded."""
