"""Tests, faults, fuzzing and benchmarks, all without the weights that earlier work left on this machine."""

import os
import tempfile

_CACHES = tempfile.TemporaryDirectory(prefix="qualiclip-tests-")
# Before torch and the Hub's client are imported, which read them once. What passes here passes on a fresh machine.
os.environ.update(TORCH_HOME=f"{_CACHES.name}/torch", HF_HOME=f"{_CACHES.name}/hub")
