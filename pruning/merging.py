"""What methods share that hand over tokens made of several patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruning.ops import assign_sum, never_zero, others
from pruning.tokens import VisualTokens


def with_summary(tokens: VisualTokens, kept: Tensor, hidden: Tensor, summary: Tensor) -> VisualTokens:
    """Kept slots (B, k) with states `hidden` (B, k, D), then one summary token (B, D) that belongs to no patch (-1).

    A summary that cancels out to zero becomes the first of the tokens it stands for, whose features it carries too.
    """
    first = others(kept, tokens.count)[:, :1]  # (B, 1)
    states = torch.cat([hidden, summary[:, None]], 1).to(tokens.hidden.dtype)
    out = tokens.gather(torch.cat([kept, first], 1))
    index = torch.cat([out.index[:, :-1], torch.full_like(first, -1)], 1)
    return replace(out.with_hidden(never_zero(states, out.hidden)), index=index)


def weighted_mean(x: Tensor, size: Tensor, owner: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means of x (B, n, D) weighted by size (B, n) over owners (B, n) in 0..k-1 -> (B, k, D) and sizes (B, k)."""
    sizes = size.new_zeros(len(size), k).scatter_add_(1, owner, size)
    return assign_sum(x * size[..., None], owner, k) / sizes[..., None], sizes
