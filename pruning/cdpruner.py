"""CDPruner: K tokens that are diverse given the question (a conditional determinantal point process)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.clip_text import SIGNS, relevance
from pruning.errors import one_of
from pruning.ops import gram, top
from pruning.tokens import Question, VisualTokens

NORMALISE = ("image", "batch")


def rescale(r: Tensor, normalise: str) -> Tensor:
    """Relevance (B, n) stretched to (0, 1] over each image or over the whole batch; 1 where it is constant."""
    dims = (1,) if normalise == "image" else (0, 1)
    low, high = r.amin(dims, keepdim=True), r.amax(dims, keepdim=True)
    spread = high - low
    return torch.where(spread > 1e-6, (r - low + 1e-6) / spread.clamp(min=1e-6), 1.0)


def greedy_map(similarity: Tensor, r: Tensor, k: int) -> Tensor:
    """Greedy MAP of the DPP with kernel r_i S_ij r_j (Chen et al. 2018, arXiv 1709.05135).

    Similarities (B, n, n) and relevance (B, n) -> (B, k) slots, all distinct. Each step takes the token with the
    largest remaining determinant gain d. Where no gain is above rounding noise (k exceeds the kernel's rank), the
    rest are the tokens with the largest diagonal.
    """
    b, n = r.shape
    gain = diagonal = r * similarity.diagonal(dim1=1, dim2=2) * r  # (B, n)
    noise, rows = 1e-6 * diagonal, torch.arange(b, device=r.device)
    factors = r.new_empty(b, k, n)  # rows of the Cholesky factor built so far
    rank = diagonal / (diagonal.amax(1, keepdim=True) + 1e-12)  # (B, n) in [0, 1]: the order of the leftovers
    for step in range(k):
        live, pick = gain.where(gain > noise, -torch.inf).max(1)  # the first of equals
        spanned = live == -torch.inf
        if spanned.all():
            break
        place = torch.where(spanned, rank[rows, pick], 2.0 + k - step)
        rank = rank.scatter(1, pick[:, None], place[:, None])
        past = (factors[rows, None, :step, pick] @ factors[:, :step])[:, 0]  # (B, n)
        new = r[rows, pick, None] * similarity[rows, pick] * r - past
        factors[:, step] = new / live[:, None].sqrt()  # NaN in a spanned image: no gain of it exceeds the noise again
        gain = (gain - factors[:, step].square()).scatter(1, pick[:, None], -torch.inf)
    return top(rank, k)


@dataclass
class CDPruner(Pruner):
    """CDPruner (arXiv 2506.10967, NeurIPS 2025), Theia-4869/CDPruner @ 9541616: MAP of L_ij = r_i cos(x_i, x_j) r_j.

    x are the projected tokens, r the relevance to the question, rescaled to (0, 1].

    Differences from the official code: relevance is rescaled over each image (official: over the whole batch, which
    makes a choice depend on its neighbours; `normalise="batch"` does that). Where K exceeds the kernel's rank, the
    leftovers are the most relevant tokens (official: NaN and fewer than K tokens); constant relevance counts as 1
    (official: division by zero).
    """

    normalise: str = "image"
    sign: str = "auto"
    reads_question = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("sign", self.sign, SIGNS)
        one_of("normalise", self.normalise, NORMALISE)

    def select(self, tokens: VisualTokens, question: Question) -> Tensor:
        r = rescale(relevance(tokens, question, self.sign, cosine=True), self.normalise)  # (B, n)
        return greedy_map(gram(tokens.projected), r, self.keeps(tokens.patches))
