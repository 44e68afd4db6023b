"""Hostile and odd input: every reader of files from elsewhere, with the files that once broke one.

``targets`` says what is read and within which limits; ``test_readers.py`` mutates valid files with Hypothesis, and
``python -m tests.fuzz TARGET`` searches further, guided by coverage. ``tests/corpus/<target>`` keeps what was found.
"""

from tests.support import fresh_caches
