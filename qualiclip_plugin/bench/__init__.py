"""Benchmarks: what scoring costs on the machine they run on."""
