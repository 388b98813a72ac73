"""SparseVLM: question words that fit the image rate its tokens in three decoder layers; v1 merges what leaves.

Zhang et al., ICML 2025 (arXiv 2410.04417); official code Gumpest/SparseVLMs @ 26a5f48 (`v1` is its 1_0, `plus` 2_0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruning.decoder import DecoderPruner, Look, Plan, scaled
from pruning.errors import one_of
from pruning.ops import assign_sum, others, top
from pruning.tokens import take

LAYERS = (3, 7, 16)  # of 32; tokens leave behind the layers 2, 6, 15
PUBLISHED = {  # label of the budget -> tokens kept (before merging) of 576 at the three stages
    "v1": {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)},
    "plus": {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)},
}
STEPS = 2048  # between two published lists


@dataclass
class SparseVLM(DecoderPruner):
    """Three stages, rated by the text tokens (template included) that fit the image best.

    `v1` merges part of the leaving tokens into cluster centres and renumbers positions at each stage (generated
    tokens go on from the unpruned length, as upstream). `plus` keeps positions, merges nothing, divides attention by
    the rotary bias and reads the `heads` heads that look at the image most.

    Keep counts: a published list where its average is within one token of the budget, otherwise linear between the
    lists (down to one token a stage, up to all). `counting: after_prune` is the authors' average, in which the layer
    behind which tokens leave counts as pruned already: their 192, 128, 96, 64 are budgets of that counting.
    Differences from the official code: no random noise in the density; shallower models prune at the same share of
    their depth; a batch and several images a prompt work.
    """

    version: str = "v1"
    counting: str = "processed"
    heads: int = 14
    slack: ClassVar[float] = 1.0
    text_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("version", self.version, PUBLISHED)
        one_of("counting", self.counting, ("processed", "after_prune"))

    @property
    def renumbers(self) -> bool:
        return self.version == "v1"

    # --- budget -----------------------------------------------------------------------------------------
    def plans(self, depth: int, n: int) -> list[Plan]:
        layers = scaled(LAYERS, depth) if depth < 32 else LAYERS
        if not layers:
            return []
        published = [tuple(max(1, round(k * n / 576)) for k in row) for row in PUBLISHED[self.version].values()]
        lists = [(1, 1, 1), *published, (n, n, n)]

        def make(i: int) -> Plan:
            low, part = min(i // STEPS, len(lists) - 2), i / STEPS
            return {at: round(a + (b - a) * (part - low)) for at, a, b in zip(layers, lists[low], lists[low + 1])}

        known = [dict(zip(layers, row)) for row in published]
        known = [plan for plan in known if abs(self.average(plan, depth, n) - self.budget) < 1]
        return known[:1] or [self.nearest(make, STEPS * (len(lists) - 1), depth, n)]

    def average(self, plan: Plan, depth: int, n: int) -> float:
        # tokens leave before layer `at`; the authors count layer `at - 1`, whose attention rates them, as pruned too
        early = 1 if self.counting == "after_prune" else 0
        return super().average({at - early: keep for at, keep in plan.items()}, depth, n)

    def size(self, n: int, keep: int) -> int:
        kept = min(keep, n - 1)
        return kept + merge_counts(n - kept)[1] if self.version == "v1" else kept

    # --- stages -----------------------------------------------------------------------------------------
    def askers(self, visual: Tensor, text: Tensor, real: Tensor) -> Tensor:
        return raters(visual, text, real)

    def rank(self, look: Look) -> Tensor:
        if self.version == "v1":
            return relevance(look.attention, look.asking)
        bias = look.turn()[:, None]
        unbiased = look.attention / torch.where(bias.abs() < 1e-6, 1e-6, bias)
        return relevance(attentive_heads(unbiased, look.asking, self.heads), look.asking)

    def shrink(self, hidden: Tensor, score: Tensor, keep: int) -> tuple[Tensor, Tensor | None]:
        kept = top(score, min(keep, hidden.shape[1] - 1)).sort(1).values
        return kept, merge(hidden, score, kept) if self.version == "v1" else None


def raters(visual: Tensor, text: Tensor, real: Tensor) -> Tensor:
    """Text tokens that the image picks above average: (I, n, D), (I, T, D), (I, T) bool -> (I, T) bool.

    softmax over the text of the raw dot products, mean over the image; all real text where nothing stands out.
    """
    logits = visual.float() @ text.float().transpose(1, 2)  # (I, n, T)
    share = logits.masked_fill(~real[:, None], -torch.inf).softmax(-1).mean(1)
    chosen = real & (share > share.sum(1, keepdim=True) / real.sum(1, keepdim=True))
    return torch.where(chosen.any(1, keepdim=True), chosen, real)


def relevance(attention: Tensor, asking: Tensor) -> Tensor:
    """Mean over heads, then over the rows that ask: (I, H, R, n), (I, R) bool -> (I, n)."""
    weight = asking.float() / asking.sum(1, keepdim=True)
    return (attention.mean(1) * weight[..., None]).sum(1)


def attentive_heads(attention: Tensor, asking: Tensor, heads: int) -> Tensor:
    """The `heads` heads with the largest sum over asking rows and tokens: (I, H, R, n) -> (I, heads, R, n)."""
    total = (attention * asking[:, None, :, None]).sum((2, 3))
    return take(attention, top(total, min(heads, attention.shape[1])))


def merge_counts(dropped: int) -> tuple[int, int]:
    """Of `dropped` tokens: how many are merged, and into how many clusters."""
    merged = int(0.3 * dropped) + 1
    return merged, int(merged / 10) + 1


def merge(hidden: Tensor, score: Tensor, kept: Tensor) -> Tensor:
    """Clusters of the best-rated dropped tokens: (I, n, D), (I, n), kept slots (I, k) -> (I, c, D)."""
    dropped = others(kept, hidden.shape[1])
    count, clusters = merge_counts(dropped.shape[1])
    best = dropped.gather(1, top(score.gather(1, dropped), count))
    return cluster_means(take(hidden, best).float(), clusters).to(hidden.dtype)


def cluster_means(x: Tensor, clusters: int) -> Tensor:
    """Means of density-peak clusters (DPC-KNN): (I, m, D) -> (I, c, D), highest peak first."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5  # (I, m, m)
    near = distance.topk(clusters, dim=2, largest=False).values
    density = (-near.square().mean(2)).exp()
    denser = density[:, None] > density[:, :, None]  # [i, j]: j is denser than i
    far = distance.amax((1, 2))[:, None, None]
    peak = torch.where(denser, distance, far).amin(2) * density
    centres = top(peak, clusters)
    owner = take(distance, centres).argmin(1)  # (I, m)
    owner.scatter_(1, centres, torch.arange(clusters, device=x.device).expand_as(centres))
    size = torch.zeros_like(centres, dtype=x.dtype).scatter_add_(1, owner, torch.ones_like(owner, dtype=x.dtype))
    return assign_sum(x, owner, clusters) / (size[..., None] + 1e-6)
