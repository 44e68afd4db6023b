"""CLIP's attention pool with a single query: the same output for a fraction of the work.

CLIP's ResNets end in a self-attention over [mean token, all tokens] (Radford et al., arXiv 2103.00020) of which
only the mean token's output is used. With one query q per head h, its logits are q_h . (K_h x_t + b) =
(K_h^T q_h) . x_t + const, and the constant cancels in the softmax; since the attention weights sum to one, the
value projection may follow the weighted sum. No projection of all tokens and no T x T matrix remains, so the cost
grows linearly with the image area. The result equals the full attention up to rounding.
"""

from __future__ import annotations

import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, cat, einsum, nn


class SingleQueryAttentionPool(nn.Module):
    """Attention pool of CLIP's ModifiedResNet, evaluated for the mean token only.

    Takes over the projections of an ``AttentionPool2d`` (open_clip's or OpenAI's), under the same names, so state
    dictionaries are interchangeable.

    Args:
        pool: The attention pool whose parameters are used; they are shared, not copied.
        use_positional_embedding: QualiCLIP switches the positional embedding off, which makes any resolution
            possible. ``True`` adds it, interpolated the way pyiqa does.
    """

    def __init__(self, pool: AttentionPool2d, use_positional_embedding: bool = False) -> None:
        super().__init__()
        self.positional_embedding = pool.positional_embedding
        self.k_proj, self.q_proj = pool.k_proj, pool.q_proj
        self.v_proj, self.c_proj = pool.v_proj, pool.c_proj
        self.num_heads = pool.num_heads
        self.use_positional_embedding = use_positional_embedding

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool a feature map (N, C, H, W), of lower precision or not, to image features (N, D)."""
        tokens = feature_map.flatten(2).to(self.q_proj.weight.dtype)
        mean = tokens.mean(dim=2, keepdim=True)
        if self.use_positional_embedding:
            positions = self._positional(tokens.shape[2] + 1).to(tokens)
            mean, tokens = mean + positions[:, :1], tokens + positions[:, 1:]
        query = self.q_proj(mean[:, :, 0]).unflatten(1, (self.num_heads, -1))
        query = query * query.shape[-1] ** -0.5
        keys = einsum("nhd,hdc->nhc", query, self.k_proj.weight.unflatten(0, (self.num_heads, -1)))
        # The mean token stays apart: joined to the others it would copy the whole feature map.
        weights = cat([keys @ mean, keys @ tokens], dim=2).softmax(dim=-1)
        pooled = weights[:, :, 1:] @ tokens.transpose(1, 2) + weights[:, :, :1] * mean.transpose(1, 2)
        values = einsum("nhc,hdc->nhd", pooled, self.v_proj.weight.unflatten(0, (self.num_heads, -1)))
        return self.c_proj(values.flatten(1) + self.v_proj.bias)

    def _positional(self, count: int) -> Tensor:
        # pyiqa resizes the (tokens, channels) matrix as if it were a picture; kept for equal scores.
        matrix = self.positional_embedding[None, None]
        return F.interpolate(matrix, size=(count, matrix.shape[-1]), mode="bicubic")[0, 0].T
