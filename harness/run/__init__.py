"""Score whole datasets: missing scores are computed and stored as they come."""
