"""SCOPE: greedy coverage of the image, weighted by the CLS attention (official code kinredon/SCOPE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import by_parts, gram
from pruning.tokens import Question, VisualTokens

CANDIDATES = (32, 128)  # gains recomputed at first and when they did not settle the pick; then all


def gains(similarity: Tensor, cover: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """w_j * sum_i max(0, S_ji - cover_i) of tokens j in `rows`: (B, n, n), (B, n), (B, n), (B, m) -> (B, m)."""
    image = torch.arange(len(rows), device=rows.device)[:, None]
    return similarity[image, rows].sub_(cover[:, None]).clamp_(min=0).sum(-1) * weight.gather(1, rows)


def settle(bound: Tensor, similarity: Tensor, cover: Tensor, weight: Tensor) -> Tensor:
    """Lowers the upper bounds (B, n) of the gains until the largest of each image is exact.

    A gain never grows while the cover does, so an exact gain above all bounds is the largest gain.
    """
    exact = torch.zeros_like(bound, dtype=torch.bool)
    for m in (*CANDIDATES, bound.shape[1]):
        rows = bound.masked_fill(exact, -torch.inf).topk(min(m, bound.shape[1])).indices
        fresh = torch.minimum(gains(similarity, cover, weight, rows), bound.gather(1, rows))  # picked: -inf stays
        bound = bound.scatter(1, rows, fresh)
        exact.scatter_(1, rows, True)
        if exact.gather(1, bound.argmax(-1, keepdim=True)).all():
            break
    return bound


@by_parts
def greedy(x: Tensor, weight: Tensor, k: int) -> Tensor:
    """Greedy weighted facility location: (B, n, D), weights (B, n) at least 0 -> (B, k) slots in order of choice.

    Each pick maximises w_j * sum_i max(0, S_ij - cover_i), the first of equals; then cover_i = max(cover_i, S_ij),
    with S the cosine similarity. A smaller k gives a prefix. Lazy: bounds from earlier picks spare most of the
    O(n^2) of a pick.
    """
    similarity = gram(x)
    image = torch.arange(len(weight), device=weight.device)
    cover = torch.zeros_like(weight)
    bound = similarity.clamp(min=0).sum(-1) * weight
    picks: list[Tensor] = []
    for _ in range(k):
        if picks:
            bound = settle(bound, similarity, cover, weight)
        picks.append(bound.argmax(-1))  # (B,)
        bound[image, picks[-1]] = -torch.inf
        cover = torch.maximum(cover, similarity[image, picks[-1]])
    return torch.stack(picks, 1)


@dataclass
class Scope(Pruner):
    """The K patches that greedily cover all others, each gain multiplied by attention ** alpha.

    Source: github.com/kinredon/SCOPE @ 6bf7306, `scope/clip_encoder.py`. S is the cosine similarity of the hidden
    states, the attention is the CLS row summed over heads. Reads cls_attention; a selection without CLS.

    Differences from the official code: float32 instead of half precision, whose sums tie often; the budget is
    that of one crop instead of K / crops.
    """

    alpha: float = 1.0

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        saliency = tokens.cls_attention.sum(1) ** self.alpha  # (B, n)
        return greedy(tokens.hidden.float(), saliency, self.keeps(tokens.patches))  # (B, K)
