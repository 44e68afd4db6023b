"""QualiCLIP for pyiqa: the model, its weights and its training (arXiv 2403.11176).

Importing this package adds ``qualiclip-lite`` to ``pyiqa.list_models()``; it costs nothing until pyiqa is imported.
"""

from wrapt import register_post_import_hook

__version__ = "0.1.0"

register_post_import_hook(
    "qualiclip_plugin.integrations.pyiqa_registration:register_metrics", "pyiqa.default_model_configs"
)
