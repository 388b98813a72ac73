"""DivPrune: K tokens as far from each other as possible (greedy max-min distance)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import by_parts, one_by_one, unit
from pruning.tokens import Question, VisualTokens, take


def loneliest(u: Tensor, rows: int = 32) -> Tensor:
    """The token with the most distant nearest neighbour: unit vectors (B, n, D) -> slots (B,), the first of equals.

    Branch and bound: whatever is seen of a token bounds the distance to its nearest from above. The rows of the
    tokens with the largest bounds are computed until the largest distance is known.
    """
    n = u.shape[1]
    bound = u.new_full(u.shape[:2], torch.inf)  # (B, n), exact where `known`
    known = torch.zeros_like(bound, dtype=torch.bool)
    ask = torch.arange(0, n, -(-n // rows), device=u.device).expand(len(u), -1)  # spread evenly at first
    while True:
        distance = (1 - take(u, ask) @ u.mT).scatter_(2, ask[..., None], torch.inf)  # (B, m, n)
        bound = torch.minimum(bound, distance.amin(1)).scatter_(1, ask, distance.amin(2))
        known.scatter_(1, ask, True)
        best = bound.where(known, -torch.inf).amax(1, keepdim=True)
        if not ((bound >= best) & ~known).any():
            return bound.where(known, -torch.inf).argmax(1)
        ask = bound.masked_fill(known, -torch.inf).topk(min(rows, n)).indices


@by_parts
def max_min(x: Tensor, k: int) -> Tensor:
    """Greedy max-min diversity in cosine distance: (B, n, D) -> (B, k) slots in the order picked, all distinct.

    The first pick has the most distant nearest neighbour, each next one the largest distance to its nearest pick.
    """
    u = unit(x)
    picks, similar = [loneliest(u)], one_by_one(u, k - 1)
    closest = u.new_full(u.shape[:2], torch.inf)  # distance to the nearest pick; -inf once picked
    for _ in range(k - 1):
        closest = torch.minimum(closest, 1 - similar(picks[-1])).scatter_(1, picks[-1][:, None], -torch.inf)
        picks.append(closest.argmax(1))  # the first of equals
    return torch.stack(picks, 1)


@dataclass
class DivPrune(Pruner):
    """DivPrune (arXiv 2503.02175, CVPR 2025), vbdi/divprune @ 799e2d9: max-min diversity of the projected tokens.

    Differences from the official code: a picked token is never picked again (official: duplicates where fewer than K
    tokens are distinct), and a zero vector is at distance 1 from all (official: NaN, which repeats index 0). For
    LLaVA-NeXT the runner asks crop by crop; the official code selects once over all crops and newlines together.
    """

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        return max_min(tokens.projected, self.keeps(tokens.patches))  # (B, n, D_llm) -> (B, K)
