"""HoloV: strips of the image share the budget by their attention (arXiv 2510.02912)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.errors import one_of
from pruning.ops import top
from pruning.tokens import Question, VisualTokens


def strip_sizes(n: int, strips: int) -> list[int]:
    """Lengths of consecutive runs of the n tokens in raster order, the first n mod strips one longer."""
    short, longer = divmod(n, strips)
    return [short + (p < longer) for p in range(strips)]


def block_scores(x: Tensor, attention: Tensor, alpha: float) -> Tensor:
    """Score of equally long strips: (B, P, m, D), (B, P, m) -> (B, P).

    Mean over the strip's tokens of 1000 a_i + alpha * v_i * scale. v_i is the variance of token i's similarities
    in its strip (diagonal set to 0), scale = mean |1000 a| / (mean v + 1e-6).
    """
    m = x.shape[2]
    gram = x @ x.mT  # (B, P, m, m)
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()[..., None] + 1e-6  # from the product: x is read only once
    similarity = gram / norm / norm.mT
    similarity.diagonal(dim1=-2, dim2=-1).zero_()
    mean = similarity.sum(-1, keepdim=True) / max(m - 1, 1)
    variance = (similarity - mean).square_().sum(-1) / max(m - 1, 1)  # (B, P, m)
    boosted = 1e3 * attention
    scale = boosted.abs().mean(-1, keepdim=True) / (variance.mean(-1, keepdim=True) + 1e-6)
    return (boosted + alpha * variance * scale).mean(-1)


def strip_scores(x: Tensor, attention: Tensor, strips: int, alpha: float) -> Tensor:
    """Scores of consecutive strips: (B, n, D), (B, n) -> (B, P)."""
    short, longer = divmod(x.shape[1], strips)
    cut = longer * (short + 1)
    parts = []
    for where, count in ((slice(0, cut), longer), (slice(cut, None), strips - longer)):
        if count:
            blocks = [part[:, where].unflatten(1, (count, -1)) for part in (x, attention)]
            parts.append(block_scores(*blocks, alpha))
    return torch.cat(parts, 1)


def strip_quotas(score: Tensor, k: int) -> Tensor:
    """floor of K times each strip's share of the scores (B, P), what is left one by one to the largest shares."""
    share = score / (score.sum(1, keepdim=True) + 1e-6)
    taken = (share * k).floor().long()
    left = k - taken.sum(1, keepdim=True)  # (B, 1)
    place = top(share, share.shape[1]).argsort(-1)  # (B, P), 0 = largest share
    return taken + (place < left)


def ordered(attention: Tensor, sizes: list[int], quota: Tensor, k: int) -> Tensor:
    """The kept tokens in the official order: attention (B, n), quotas (B, P) -> (B, K) slots.

    Strip after strip, each strip's most attended first; raster order where a strip is kept whole. Where quotas
    exceed their strips, the most attended tokens left out follow (the official code appends zero vectors there).
    """
    n = attention.shape[1]
    sizes_ = torch.tensor(sizes, device=attention.device)
    strip = torch.arange(len(sizes), device=attention.device).repeat_interleave(sizes_)  # (n,)
    rank = top(attention, n).argsort(-1)  # (B, n), 0 = most attended
    queue = (strip * n + rank).argsort(-1)  # (B, n) strip by strip, in each by attention; strips stay in place
    place = torch.arange(n, device=queue.device) - (sizes_.cumsum(0) - sizes_)[strip]  # (n,) rank in the strip
    in_quota = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, queue, place < quota[:, strip])
    whole = (quota >= sizes_)[:, strip]  # (B, n)
    inside = strip * n + torch.where(whole, torch.arange(n, device=rank.device), rank)
    return torch.where(in_quota, inside, len(sizes) * n + rank).argsort(-1)[:, :k]


@dataclass
class HoloV(Pruner):
    """Per strip a quota proportional to its attention, in each strip the most attended patches.

    Source: github.com/obananas/HoloV @ 1d2e65e, `llava/model/utils.py`. Attention is the mean over heads of the CLS
    row. The variance term is the official one; it cancels when shares are formed, so `alpha` moves almost nothing.
    `strips: fixed` is the released LLaVA code (16 at every budget), `qwen` the authors' Qwen file
    (1024 / 576 * n / K strips; equal at K = 64). Reads cls_attention and projected (B, n, D_llm).

    Differences from the official code: where quotas exceed their strips, the most attended patches left out fill
    the budget instead of zero vectors; never more strips than patches, and a strip of one patch is scored on the
    scale of all others (officially a thousandth of it).
    """

    strips: str = "fixed"
    alpha: float = 0.09

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("strips", self.strips, ("fixed", "qwen"))

    def count(self, n: int, k: int) -> int:
        """Strips that n patches are cut into for a budget of k."""
        return min(n, 16 if self.strips == "fixed" else max(1, int(1024 / 576 * n / k)))

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        k, n = self.keeps(tokens.patches), tokens.count
        strips = self.count(n, k)
        attention = tokens.cls_attention.mean(1)  # (B, n)
        score = strip_scores(tokens.projected, attention, strips, self.alpha)  # (B, P)
        return ordered(attention, strip_sizes(n, strips), strip_quotas(score, k), k)
