"""CDPruner: K tokens that are diverse given the question (a conditional determinantal point process)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.clip_text import SIGNS, relevance
from pruning.errors import one_of
from pruning.ops import by_parts, one_by_one, top, unit
from pruning.tokens import Question, VisualTokens

NORMALISE = ("image", "batch")


def rescale(r: Tensor, normalise: str) -> Tensor:
    """Relevance (B, n) stretched to (0, 1] over each image or over the whole batch; 1 where it is constant."""
    dims = (1,) if normalise == "image" else (0, 1)
    low, high = r.amin(dims, keepdim=True), r.amax(dims, keepdim=True)
    spread = high - low
    return torch.where(spread > 1e-6, (r - low + 1e-6) / spread.clamp(min=1e-6), 1.0)


@by_parts
def greedy_map(x: Tensor, r: Tensor, k: int) -> Tensor:
    """Greedy MAP of the DPP with kernel r_i cos(x_i, x_j) r_j (Chen et al. 2018, arXiv 1709.05135).

    Features (B, n, D) and relevance (B, n) -> (B, k) slots, all distinct. Each step takes the token with the
    largest remaining determinant gain d. Where no gain is above rounding noise (k exceeds the kernel's rank), the
    rest are the tokens with the largest diagonal.
    """
    u = unit(x)
    diagonal = r * u.square().sum(-1) * r  # (B, n)
    noise, similar = 1e-6 * diagonal, one_by_one(u, k)
    gain = diagonal.where(diagonal > noise, -torch.inf)  # -inf: picked, or spanned by the picks
    factors = r.new_empty(len(r), k, r.shape[1])  # rows of the Cholesky factor built so far
    picks, lives = [], []
    for step in range(k):
        live, pick = gain.max(1, keepdim=True)  # (B, 1), the first of equals
        past = factors[:, :step].gather(2, pick[..., None].expand(-1, step, 1)).mT @ factors[:, :step]  # (B, 1, n)
        new = r.gather(1, pick) * similar(pick[:, 0]) * r - past[:, 0]
        factors[:, step] = new / live.sqrt()  # NaN in a spanned image: all its gains are -inf already
        gain = gain - factors[:, step].square()
        gain = gain.where(gain > noise, -torch.inf).scatter_(1, pick, -torch.inf)
        picks.append(pick)
        lives.append(live)
    place = torch.arange(k + 1, 1, -1.0, device=r.device).where(torch.cat(lives, 1) > -torch.inf, 0.0)  # (B, k)
    rank = diagonal / (diagonal.amax(1, keepdim=True) + 1e-12)  # (B, n) in [0, 1]: the order of the leftovers
    return top(rank.scatter_reduce(1, torch.cat(picks, 1), place, "amax"), k)


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
    reads_clip = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("sign", self.sign, SIGNS)
        one_of("normalise", self.normalise, NORMALISE)

    def select(self, tokens: VisualTokens, question: Question) -> Tensor:
        r = rescale(relevance(tokens, question, self.sign, cosine=True), self.normalise)  # (B, n)
        return greedy_map(tokens.projected, r, self.keeps(tokens.patches))  # (B, K)
