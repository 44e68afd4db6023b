"""Scores under guard: baselines, what moved, and the bounds of other people's pipelines."""
