"""VisionZip: the patches that CLS looks at most, and the rest merged into a few by their keys (arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import cosine, never_zero, others, top
from pruning.tokens import Question, VisualTokens, take


def split(budget: int) -> tuple[int, int]:
    """A budget K as (dominant tokens with CLS counted, contextual tokens).

    Contextual: floor of min(K/4, max(K/8 + 2, 5K/32)), the piecewise linear rule through every row that was
    published (192 = 162 + 30, 128 = 108 + 20, 64 = 54 + 10) or that SCOPE's authors run VisionZip with (48 = 40 + 8,
    32 = 26 + 6, 16 = 12 + 4, 8 = 6 + 2). Below 4 there is none; at 1 CLS alone is left.
    """
    contextual = int(min(budget / 4, max(budget / 8 + 2, 5 * budget / 32)))
    return budget - contextual, contextual


def choose(attention: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches dominate, which anchor a merged token, and which are merged.

    Args:
        attention: (B, n) CLS attention.
    Returns:
        Slots of the patches by attention (B, dominant), of the merge targets (B, contextual), spread evenly over
        the ranks of the rest in raster order, and of the other patches (B, rest). Each ascending.
    """
    best = top(attention, dominant).sort(-1).values
    rest = others(best, attention.shape[1])  # (B, M), ascending
    step = max(1, rest.shape[1] // max(1, contextual))
    is_target = torch.zeros(rest.shape[1], dtype=torch.bool, device=rest.device)
    is_target[: step * contextual : step] = True
    return best, rest[:, is_target], rest[:, ~is_target]


def merge(hidden: Tensor, metric: Tensor, targets: Tensor, leaving: Tensor) -> Tensor:
    """Each target plus the mean of the patches most similar to it: (B, n, D), (B, n, d) -> (B, C, D) float32.

    A sum of target and mean, as published, and the target alone where no patch chose it. Where the sum would be
    the zero vector (opposite features), the target alone too.
    """
    similarity = cosine(take(metric, leaving), take(metric, targets))  # (B, O, C)
    owner = similarity.argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(similarity).scatter_(2, owner, 1.0)  # a product is deterministic, a scatter is not
    count = one_hot.sum(1).clamp(min=1)[..., None]  # (B, C, 1)
    slots = leaving[..., None].expand_as(one_hot)
    members = one_hot.new_zeros(len(hidden), hidden.shape[1], targets.shape[1]).scatter_(1, slots, one_hot)
    own = take(hidden, targets).float()
    return never_zero(own + members.mT @ hidden.float() / count, own)


@dataclass
class VisionZip(Pruner):
    """CLS, the patches with the largest CLS attention (summed over heads), and merged contextual tokens.

    Source: github.com/dvlab-research/VisionZip @ 3151f6d, `visionzip/clip_encoder.py`. Contextual tokens are
    similar in the mean over heads of the keys. Reads cls_attention and keys (B, n, D); output (B, K, D).

    Differences from the official code: float32 and ties to the lowest index instead of half precision;
    no contextual token (budget below 4) and zero keys work instead of failing.
    """

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        """CLS in front, dominant and contextual tokens: (B, n, D) -> (B, K, D)."""
        dominant, contextual = split(self.keeps(tokens.patches))
        best, targets, leaving = choose(tokens.cls_attention.sum(1), dominant - 1, contextual)
        kept = tokens.gather(torch.cat([best, targets], 1))
        if contextual:
            merged = merge(tokens.hidden, tokens.mean_keys, targets, leaving).to(tokens.hidden.dtype)
            kept = kept.with_hidden(torch.cat([kept.hidden[:, : dominant - 1], merged], 1))
        return kept.with_cls()
