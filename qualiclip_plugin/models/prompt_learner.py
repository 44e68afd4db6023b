"""QualiCLIP+: learned context around the prompts, on the frozen tuned encoder.

Prompt learning as in CLIP-IQA+ (Wang, Chan, Loy, arXiv 2207.12396) and CoOp (Zhou et al., arXiv 2109.01134): 16
context vectors, half of them before and half after the class tokens. Parameter and buffer names are pyiqa's, so the
published ``QualiCLIP+_*.pth`` files load and files trained here load there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from qualiclip_plugin.models.prompts import flat_prompts
from qualiclip_plugin.utils.errors import ConfigError


class PromptLearner(nn.Module):
    """Context vectors for M prompts and the encoding of the prompts with them.

    Args:
        text_tower: open_clip's ``TextTransformer``; only read, never trained.
        tokenizer: Strings -> token ids (M, T).
        prompts: The M class prompts.
        n_ctx: Number of context vectors.
        ctx_init: Words whose embeddings start the context; replaces ``n_ctx`` by the number of their tokens.
        prompt_specific_ctx: One context per prompt instead of one for all.

    Raises:
        ConfigError: No context, or one that leaves no room for the prompts.
    """

    token_prefix: Tensor
    token_suffix: Tensor

    def __init__(
        self,
        text_tower: TextTransformer,
        tokenizer: Callable[[list[str]], Tensor],
        prompts: Sequence[str] = tuple(flat_prompts()),
        n_ctx: int = 16,
        ctx_init: str = "",
        prompt_specific_ctx: bool = True,
    ) -> None:
        super().__init__()
        words = ctx_init.replace("_", " ").split()
        if not words and n_ctx < 1:
            raise ConfigError(f"n_ctx must be at least 1, got {n_ctx}")
        lead = " ".join(words or ["X"] * n_ctx) + " "
        # Text has the tokens between its start and its end, which has the highest id; one word may have several.
        self.n_ctx, *self.name_lens = (int(end) - 1 for end in tokenizer([lead, *prompts]).argmax(dim=-1))
        count = self.n_ctx
        self.tokenized_prompts = tokenizer([lead + prompt for prompt in prompts])
        if count + max(self.name_lens) + 2 > (length := self.tokenized_prompts.shape[1]):
            raise ConfigError(f"a context of {len(lead.split())} words and the prompts exceed {length} tokens")
        with torch.no_grad():
            embedding = text_tower.token_embedding(self.tokenized_prompts)
        random = embedding.new_empty(len(prompts), count, embedding.shape[-1])
        context = embedding[:, 1 : 1 + count] if words else nn.init.normal_(random, std=0.02)
        self.ctx = nn.Parameter((context if prompt_specific_ctx else context[0]).clone())
        self.register_buffer("token_prefix", embedding[:, :1].clone())
        self.register_buffer("token_suffix", embedding[:, 1 + count :].clone())

    def embeddings(self) -> Tensor:
        """Token embeddings (M, T, C): start, half the context, class tokens, other half, end and padding."""
        context = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(len(self.name_lens), -1, -1)
        half = self.n_ctx // 2
        rows = [
            torch.cat([start, left_right[:half], rest[:length], left_right[half:], rest[length:]])
            for start, left_right, rest, length in zip(
                self.token_prefix, context, self.token_suffix, self.name_lens, strict=True
            )
        ]
        return torch.stack(rows)

    def forward(self, text_tower: TextTransformer) -> Tensor:
        """Encode the prompts: features (M, D), not of unit norm, differentiable in the context."""
        hidden = self.embeddings() + text_tower.positional_embedding
        hidden = text_tower.transformer(hidden, attn_mask=text_tower.attn_mask)
        hidden = text_tower.ln_final(hidden)
        # The end-of-text token has the highest id of each row.
        ends = self.tokenized_prompts.argmax(dim=-1)
        return hidden[torch.arange(len(ends)), ends] @ text_tower.text_projection
