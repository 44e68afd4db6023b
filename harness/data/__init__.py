"""Datasets: what they are (``harness/datasets/*.yaml``), how they are fetched, checked, read and decoded."""
