"""Where this is imported, nothing sees the weights and datasets that earlier work left on this machine.

It comes before torch and the Hub's client, which read once where caches are. What passes here passes on a fresh
machine.
"""

import os
import tempfile

_CACHES = tempfile.TemporaryDirectory(prefix="qualiclip-tests-")
os.environ.update(TORCH_HOME=f"{_CACHES.name}/torch", HF_HOME=f"{_CACHES.name}/hub")
