"""DART: a few pivot tokens, and for each pivot the image tokens that repeat it least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import by_parts, top, unit
from pruning.tokens import Question, VisualTokens, take


def set_order(positions: Tensor) -> Tensor:
    """The order in which CPython iterates over a set of these (B, P) positions, as slots (B, P).

    The official code walks through a Python set, so its result depends on absolute positions: integers are stored
    modulo the table's size.
    """
    rows = [[row.index(member) for member in list(set(row))] for row in positions.tolist()]
    return torch.tensor(rows, device=positions.device)


def shares(total: int, live: Tensor) -> Tensor:
    """`total` tokens over the live pivots (B, P) bool in their order, the first ones getting one more: (B, P)."""
    count = live.sum(1, keepdim=True)
    rank = live.cumsum(1) - 1
    return torch.where(live, total // count + (rank < total % count).long(), 0)


@by_parts
def least_duplicated(states: Tensor, pivots: Tensor, quota: Tensor, taken: Tensor) -> Tensor:
    """Pivot after pivot, adds the free tokens with the lowest cosine similarity to it.

    states (B, n, D), pivots (B, P, D), quota (B, P) tokens of each pivot, taken (B, n) bool -> (B, n) bool.
    """
    similarity = unit(pivots) @ unit(states).transpose(1, 2)  # (B, P, n)
    most = int(quota.max())
    for p in range(pivots.shape[1]):
        nearest = top(-similarity[:, p].masked_fill(taken, torch.inf), most)  # (B, most)
        wanted = torch.arange(most, device=states.device) < quota[:, p : p + 1]
        taken = taken | torch.zeros_like(taken).scatter_(1, nearest, wanted)
    return taken


@dataclass
class Dart(Pruner):
    """DART (arXiv 2502.11494), after ModelTC/LightCompress @ 9701d03 (`dart.py`), moved in front of the LLM.

    The official code runs before LLM layer 5 on that layer's keys and normalised states. In front of the LLM there
    are neither: the keys of the vision tower (question embeddings for text) give the L1 norms that choose the
    pivots, projected tokens and question embeddings are the states. Given the official arrays in their place the
    choice is the official one.

    `start` is the position of the first visual token in the official prompt (35 tokens of LLaVA's Vicuna template
    come before it); only the order of the pivots depends on it (`set_order`).

    K rule: the official count is 4 + 8 int(K / 8). Here `image_pivots` tokens are kept (all K by key norm, if
    K <= image_pivots), and K - image_pivots are shared out evenly over all pivots, the first ones in set order
    getting one more; at 4 + 8 t both agree.
    """

    image_pivots: int = 4
    text_pivots: int = 4
    start: int = 35
    reads_question = True

    def select(self, tokens: VisualTokens, question: Question) -> Tensor:
        keep, n = self.keeps(tokens.patches), tokens.count
        image = top(tokens.keys.abs().sum(-1), min(self.image_pivots, keep))  # (B, Pi)
        if keep == image.shape[1]:
            return image
        norms = (question.embeddings.float().abs().sum(-1)).masked_fill(~question.mask, 0)  # (B, T)
        text = top(norms, self.text_pivots)  # (B, Pt)
        order = set_order(self.start + torch.cat([image, n + text], 1))  # (B, P)
        live = torch.cat([torch.ones_like(image, dtype=torch.bool), norms.gather(1, text) > 0], 1)
        states = tokens.projected
        pivots = torch.cat([take(states, image), take(question.embeddings.to(states), text)], 1)
        taken = torch.zeros(len(states), n, dtype=torch.bool, device=states.device).scatter_(1, image, True)
        quota = shares(keep - image.shape[1], live.gather(1, order))
        kept = least_duplicated(states, take(pivots, order), quota, taken)
        return top(kept, keep)  # (B, K) the kept slots, ascending
