"""Tests, faults, fuzzing and benchmarks; all but benchmarks have new caches (``tests.support.fresh_caches``)."""
