"""Scoring whole datasets: what is missing is scored and stored as it comes."""
