"""Sharing trained weights through the Hugging Face Hub: ``push_to_hub`` and ``from_pretrained``.

A repository holds the project's own file, which carries the architecture and all settings; ``config.json`` repeats
them for people and search.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download

from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.weights.checkpoint import build_model, read_weights, save_checkpoint

FILE_NAME = "qualiclip.safetensors"

MODEL_CARD = """---
{{ card_data }}
---

Image quality without a reference, from 0 to 1, higher is better: [QualiCLIP](https://arxiv.org/abs/2403.11176), read
by `HubQualiCLIP.from_pretrained` and `qualiclip score --weights` of the package `qualiclip-plugin`.

- Licence of the weights: {{ licence }}
- Human scores in their training: {{ human_scores }}

What else their file says:

```json
{{ facts }}
```
"""
"""Template of a repository's README: the Hub's own would show nothing of what the file carries."""


class HubQualiCLIP(
    QualiCLIP,
    ModelHubMixin,
    library_name="qualiclip-plugin",
    tags=["image-quality-assessment", "no-reference", "qualiclip"],
    model_card_template=MODEL_CARD,
):
    """QualiCLIP with the Hub's ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    Takes the arguments of :class:`QualiCLIP`; :meth:`of` makes one of a trained model. Models whose BatchNorm was
    folded for inference cannot be saved. ``from_pretrained`` gives a model in evaluation mode, ready to score and
    to be trained further after ``train()``.

    Attributes:
        card: What people should know, saved with the weights (see ``checkpoint.save_checkpoint``).
    """

    card: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, model: QualiCLIP, card: Mapping[str, Any] = MappingProxyType({})) -> HubQualiCLIP:
        """Share the parameters of a model (``load_model(..., inference=False)``), and the card of its file."""
        shared = cls(
            model.image_encoder,
            model.text_features,
            model.logit_scale,
            model.mean.flatten().tolist(),
            model.std.flatten().tolist(),
            model.attributes,
            backbone=model.backbone,
            precision=model.precision,
        )
        shared.card = dict(card)  # a view such as the default one could be neither copied nor pickled
        return shared

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The repository's README, with what :attr:`card` says; what it does not say is "not stated"."""
        said: dict[Any, str] = {True: "yes", False: "no"}
        facts = {
            "licence": self.card.get("licence") or "not stated",
            "human_scores": said.get(self.card.get("opinion_aware"), "not stated"),
            "facts": json.dumps(dict(self.card), indent=2, ensure_ascii=False),
        }
        return super().generate_model_card(*args, **{**facts, **kwargs})

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(save_directory / FILE_NAME, self, {"name": save_directory.name, **self.card})

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **settings: Any,
    ) -> HubQualiCLIP:
        path = Path(model_id) / FILE_NAME
        if not Path(model_id).is_dir():
            options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
            options |= {"force_download": force_download, "local_files_only": local_files_only}
            path = Path(hf_hub_download(model_id, FILE_NAME, **options))
        # Everything else in `settings` is config.json's copy of what the file carries.
        file = read_weights(path)
        model = build_model(file, precision=settings.get("precision", "fp32"))
        return cls.of(model, file.header.get("card", {})).eval()
