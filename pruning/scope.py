"""SCOPE: greedy coverage of the image, weighted by the CLS attention (official code kinredon/SCOPE)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruning.base import Pruner
from pruning.coverage import headroom, lazy_greedy
from pruning.ops import by_parts, gram
from pruning.tokens import Question, VisualTokens


@by_parts
def greedy(x: Tensor, weight: Tensor, k: int) -> Tensor:
    """Greedy weighted facility location: (B, n, D), weights (B, n) at least 0 -> (B, k) slots in order of choice.

    Each pick maximises w_j * sum_i max(0, S_ij - cover_i), the first of equals; then cover_i = max(cover_i, S_ij),
    with S the cosine similarity. A smaller k gives a prefix.
    """
    similarity = gram(x)

    def gains(cover: Tensor, rows: Tensor | None) -> Tensor:
        return headroom(similarity, cover, rows).sum(-1) * (weight if rows is None else weight.gather(1, rows))

    return lazy_greedy(similarity, gains, k)


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
