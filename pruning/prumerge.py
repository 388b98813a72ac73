"""PruMerge: K - 1 tokens by class attention, each enriched by its look-alikes, and one token for all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.merging import with_summary
from pruning.ops import by_parts, dots, top, unit
from pruning.tokens import Question, VisualTokens, take


def single_head_row(tokens: VisualTokens) -> Tensor:
    """Class attention of the block after the features, read as one head of the full width: (B, n).

    softmax(q_cls [k_cls, k]^T / sqrt(C)) without the class column. CLIP has 16 heads; the official code does not
    split them, and this row is followed literally.
    """
    query, own = tokens.read("cls_next_query"), tokens.read("cls_next_key")  # (B, C)
    keys = torch.cat([own[:, None], tokens.read("next_keys")], 1)  # (B, 1 + n, C)
    logits = dots(keys, query) * query.shape[-1] ** -0.5
    return logits.softmax(-1)[:, 1:]


@by_parts
def enrich(hidden: Tensor, keys: Tensor, attention: Tensor, kept: Tensor, neighbours: int = 32) -> Tensor:
    """Kept tokens plus the attention-weighted sum of their look-alikes, then the sum of all others.

    hidden (B, n, D), keys (B, n, C), attention (B, n), kept (B, k) -> (B, k + 1, D). Each kept token adds, not
    normalised, its `neighbours` most similar tokens by key; neighbours may be kept tokens themselves. Where `kept`
    repeats r slots (the official PruMerge+ rule), the first r others are left out, as officially.
    """
    n, k = hidden.shape[1], kept.shape[1]
    taken = torch.zeros_like(attention).scatter_(1, kept, 1.0)
    repeats = k - taken.sum(1, keepdim=True).long()
    free = taken.argsort(dim=1, stable=True)  # slots that are not kept come first, ascending
    rest = free.gather(1, repeats + torch.arange(n - k, device=kept.device))
    pool = torch.cat([kept, rest], 1)  # (B, n) the official order, which decides ties
    u = unit(keys)
    similarity = (take(u, kept) @ u.mT).gather(2, pool[:, None].expand(-1, k, -1))  # (B, k, n)
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # not its own neighbour
    near = pool[:, None].expand(-1, k, -1).gather(2, top(similarity, min(neighbours, n - 1)))  # (B, k, neighbours)
    weight = attention[:, None].expand(-1, k, -1)
    mixing = torch.zeros_like(similarity).scatter_add_(2, near, weight.gather(2, near))  # `pool` may repeat
    left = torch.zeros_like(attention).scatter_(1, rest, attention.gather(1, rest))
    mixed = torch.cat([mixing, left[:, None]], 1) @ hidden  # (B, k + 1, D)
    return torch.cat([take(hidden, kept) + mixed[:, :k], mixed[:, k:]], 1)


def outliers(attention: Tensor) -> int:
    """The official adaptive budget: how many of (n,) attentions exceed Q3 + 1.5 (Q3 - Q1).

    The round trip through a ratio is the official code's and can lose one.
    """
    q1, q3 = attention.double().quantile(attention.new_tensor([0.25, 0.75], dtype=torch.float64))
    n = len(attention)
    return int(n * (int((attention > q3 + 1.5 * (q3 - q1)).sum()) / n))


@dataclass
class PruMerge(Pruner):
    """LLaVA-PruMerge (arXiv 2403.15388, ICCV 2025), 42Shawn/LLaVA-PruMerge @ 097c041, with a fixed budget.

    The official default takes as many tokens as there are attention outliers (`outliers`), which differs from image
    to image; here K - 1 tokens and the summary make K. The order handed to the language model is raster order with
    the summary first (official: by attention, summary last). A sum that cancels out is replaced by the token itself.
    """

    neighbours: int = 32

    def choose(self, attention: Tensor, k: int) -> Tensor:
        """The k tokens to keep, (B, n) -> (B, k), distinct."""
        return top(attention, k)

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        attention = single_head_row(tokens)  # (B, n)
        kept = self.choose(attention, self.keeps(tokens.patches) - 1)  # (B, K - 1)
        states = enrich(tokens.hidden.float(), tokens.read("next_keys"), attention, kept, self.neighbours)
        return with_summary(tokens, kept, states[:, :-1], states[:, -1])
