"""PruMerge+: PruMerge on the most attended tokens and an even spread of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.ops import others, top
from pruning.prumerge import PruMerge, outliers


def spread(k: int, n: int) -> Tensor:
    """`k` evenly spaced places of 0..n-1, the first half a step in: (k,) ascending, distinct for k <= n."""
    return torch.arange(k).add(0.5).mul(n / max(k, 1)).long()


def fixed_choice(attention: Tensor, top_k: int, samples: int, distinct: bool = True) -> Tensor:
    """`top_k` tokens by attention, then `samples` spread over the others: (B, n) -> (B, top_k + samples).

    `distinct=False` spreads over all tokens, as the official non-adaptive rule does: a token may come twice.
    """
    leading = top(attention, top_k)
    n = attention.shape[1]
    places = spread(samples, n - top_k if distinct else n).to(attention.device).expand(len(attention), -1)
    return torch.cat([leading, others(leading, n).gather(1, places) if distinct else places], 1)


def adaptive_choice(attention: Tensor) -> Tensor:
    """The official adaptive rule, one image: (n,) -> (k,), attention outliers, then about three samples for each.

    Raises:
        ZeroDivisionError: no outlier; ValueError: more than a third are (the official code fails there too).
    """
    n = len(attention)
    leading = top(attention, outliers(attention)).tolist()
    step = int(int(n / len(leading)) / 3)
    return torch.tensor(leading + sorted(set(range(0, n - 1, step)) - set(leading)))


@dataclass
class PruMergePlus(PruMerge):
    """LLaVA-PruMerge+ (arXiv 2403.15388), 42Shawn/LLaVA-PruMerge @ 097c041, with a fixed budget.

    The official code has no budget: its adaptive rule (`adaptive_choice`) keeps as many tokens as the image asks
    for, its fixed rule (`fixed_choice(..., distinct=False)`) hands over K + 1 tokens that may repeat. Here K // 2
    tokens come from attention, the rest from the same even grid laid over the tokens not yet kept, so that the K
    tokens with the summary are distinct.
    """

    def choose(self, attention: Tensor, k: int) -> Tensor:
        leading = (k + 1) // 2  # of K = k + 1 tokens
        return fixed_choice(attention, leading, k - leading)
