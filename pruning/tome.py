"""ToMe: similar tokens are averaged pair by pair in every block of the tower."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.merging import weighted_mean
from pruning.ops import never_zero, unit
from pruning.tokens import Question, VisualTokens


def match(metric: Tensor, r: int, cls: bool) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: metric (B, n, C) of the patches -> owner (B, n), anchor (B, n - r).

    Tokens alternate between a set A and a set B; the r members of A that are most similar to their best partner in
    B are merged into it. New order: what is left of A, then all of B. `owner` is the new slot of each token,
    `anchor` the old slot that gives each new token its name. With a class token in front (`cls`; it is never
    merged and shifts the parity) A is 1, 3, 5, ... and keeps its order; without, A is 0, 2, 4, ... and what is left
    of it is listed by falling similarity.
    """
    n, start = metric.shape[1], int(cls)
    u = unit(metric)
    slots = torch.arange(n, device=metric.device).expand(len(metric), -1)
    a, b = slots[:, start::2], slots[:, 1 - start :: 2]
    best, partner = (u[:, start::2] @ u[:, 1 - start :: 2].transpose(1, 2)).max(-1)  # (B, |A|), the first of equals
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, stay = order[:, :r], order[:, r:]
    if cls:
        stay = stay.sort(dim=1).values
    left = stay.shape[1]
    anchor = torch.cat([a.gather(1, stay), b], 1)
    owner = torch.empty_like(slots).scatter_(1, anchor, slots[:, : n - r])
    return owner.scatter(1, a.gather(1, merged), left + partner.gather(1, merged)), anchor


def merge(tokens: VisualTokens, owner: Tensor, anchor: Tensor) -> VisualTokens:
    """Size-weighted means; a merged token has its anchor's features and the smallest patch number of its members."""
    k = anchor.shape[1]
    size = torch.ones_like(owner, dtype=torch.float32) if tokens.size is None else tokens.size
    mean, sizes = weighted_mean(tokens.hidden.float(), size, owner, k)
    out = tokens.gather(anchor)
    index = torch.full_like(anchor, tokens.patches).scatter_reduce(1, owner, tokens.index, "amin")
    states = never_zero(mean.to(tokens.hidden.dtype), out.hidden)
    before = tokens.trace.get("owner")  # (B, N): the slot that each patch went to
    trace = {**tokens.trace, "owner": owner if before is None else owner.gather(1, before)}
    return replace(out.with_hidden(states), index=index, size=sizes, trace=trace)


@dataclass
class ToMe(Pruner):
    """Token Merging (arXiv 2210.09461, ICLR 2023), facebookresearch/ToMe @ af95e4b, in the blocks LLaVA reads.

    The metric is the mean over heads of the block's keys; sizes weigh the averages and, as `log size`, the next
    blocks' attention (the runner adds it).

    The official code has no LLaVA setting. Schedule here: the same number of merges in each block, the remainder
    one more in the first blocks; where that exceeds the rule's cap (half of the tokens a block), late blocks merge
    what they can and earlier ones the rest. For CLIP-L (23 blocks), K = 64: 6 blocks of 23, then 17 of 22. A tower
    too shallow for K halves in each block, and what remains after it is merged in the same way (without class
    token; the metric is averaged along) until K are left. The tokens end in the raster order of each one's first
    patch (official: unordered).
    """

    inside_block = True

    def schedule(self, depth: int, n: int) -> dict[int, int]:
        counts = [self.keeps(n)]  # tokens after each block, from the last one back
        for block in range(depth, 0, -1):
            counts.append(counts[-1] + min((n - counts[-1]) // block, counts[-1]))
        if counts[-1] < n:  # out of reach by halving
            counts = [-(-n // 2**block) for block in range(depth, -1, -1)]
        counts.reverse()
        return {layer: after for layer, (before, after) in enumerate(pairwise(counts)) if after < before}

    def reduce_at(self, layer: int, tokens: VisualTokens, keep: int) -> VisualTokens:
        return merge(tokens, *match(tokens.mean_keys, tokens.count - keep, cls=True))

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        """What halving in the blocks has left over: (B, n, D) -> (B, K, D)."""
        keep, metric = self.keeps(tokens.patches), tokens.mean_keys
        size = torch.ones_like(metric[..., 0]) if tokens.size is None else tokens.size
        owner = anchor = torch.arange(tokens.count, device=metric.device).expand(len(metric), -1)
        while (n := anchor.shape[1]) > keep:  # who goes with whom needs the metric alone
            into, names = match(metric, min(n - keep, n // 2), cls=False)
            metric, size = weighted_mean(metric, size, into, names.shape[1])
            owner, anchor = into.gather(1, owner), anchor.gather(1, names)
        return merge(tokens, owner, anchor)
