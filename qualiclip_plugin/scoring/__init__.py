"""From image files to scores: reading ahead, batches, tables."""
