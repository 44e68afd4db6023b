"""Guards for scores: baselines, changes, and bounds for users' pipelines."""
