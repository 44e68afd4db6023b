"""Faults that happen to long runs, injected on purpose, and what is left of the work afterwards.

``python -m tests.faults --trials 50`` runs every fault so many times and writes ``results/reliability.md``.
"""

from tests.support import fresh_caches
