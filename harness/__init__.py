"""Versioned, resumable comparisons of no-reference image quality metrics."""
