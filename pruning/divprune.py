"""DivPrune: K tokens as far from each other as possible (greedy max-min distance)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import gram
from pruning.tokens import Question, VisualTokens


def max_min(similarity: Tensor, k: int) -> Tensor:
    """Greedy max-min diversity: cosine similarities (B, n, n) -> (B, k) slots in the order picked, all distinct.

    The first pick has the most distant nearest neighbour, each next one the largest distance to its nearest pick.
    """
    nearest = similarity.clone()
    nearest.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    score = 1 - nearest.amax(1)  # (B, n): distance of each token to its nearest other
    picks, rows = [], torch.arange(len(similarity), device=similarity.device)
    closest = torch.full_like(score, torch.inf)  # distance to the nearest pick; -inf once picked
    for _ in range(k):
        pick = score.argmax(1)  # the first of equals
        picks.append(pick)
        closest = torch.minimum(closest, 1 - similarity[rows, pick])
        score = closest.scatter_(1, pick[:, None], -torch.inf)
    return torch.stack(picks, 1)


@dataclass
class DivPrune(Pruner):
    """DivPrune (arXiv 2503.02175, CVPR 2025), vbdi/divprune @ 799e2d9: max-min diversity of the projected tokens.

    Differences from the official code: a picked token is never picked again (official: duplicates where fewer than K
    tokens are distinct), and a zero vector is at distance 1 from all (official: NaN, which repeats index 0). For
    LLaVA-NeXT the runner asks crop by crop; the official code selects once over all crops and newlines together.
    """

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        return max_min(gram(tokens.projected), self.keeps(tokens.patches))
