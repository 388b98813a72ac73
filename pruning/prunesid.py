"""PruneSID: group patches by principal components, drop look-alikes in each group, share the budget out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.base import Pruner
from pruning.errors import one_of
from pruning.ops import by_parts, gram, products, top
from pruning.tokens import Question, VisualTokens


def centred(hidden: Tensor) -> Tensor:
    """Sigmoid of the features, each token centred over its channels: (B, n, D) -> (B, D, n) float32.

    Channels are the samples of the principal components, tokens their variables.
    """
    a = torch.sigmoid(hidden.float()).mT
    return a - a.mean(1, keepdim=True)


@by_parts
def components(a: Tensor, q: int) -> Tensor:
    """Loadings of the first q principal components: samples by variables (B, D, n) -> (B, n, q), in float64.

    The right singular vectors of `a`, up to sign. Few of many are found without the full decomposition, which steps
    in where that leaves a doubt.
    """
    a = a.double()
    if min(a.shape[1:]) <= 64 * q:
        return decomposed(a, q)
    vectors, error = leading(a, q)
    doubtful = ~(error < 1e-6)
    if doubtful.any():
        vectors[doubtful] = decomposed(a[doubtful], q)
    return vectors


def decomposed(a: Tensor, q: int) -> Tensor:
    """`components` by the eigenvectors of the smaller Gram matrix.

    Components without variance load nothing, so that rounding noise makes no groups.
    """
    wide = a.shape[1] < a.shape[2]
    values, vectors = torch.linalg.eigh(products(a if wide else a.mT))  # ascending
    values, vectors = values.flip(-1)[:, None, :q], vectors.flip(-1)[..., :q]
    real = values > 1e-10 * values[..., :1]  # about float32's resolution of the singular values, squared
    if wide:
        vectors = a.mT @ vectors / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    return torch.where(real, vectors, 0.0)


def leading(a: Tensor, q: int, steps: int = 4, guard: int = 8) -> tuple[Tensor, Tensor]:
    """`components` by a block Krylov iteration: (B, D, n) -> (B, n, q) and a bound (B,) on the error of a loading.

    The bound is the residual over the gap to the neighbouring eigenvalue; without a gap it is infinite or NaN.
    """
    start = torch.randn(a.shape[2], q + guard, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    last = basis = torch.linalg.qr(a.mT @ (a @ start.to(a.device))).Q
    for _ in range(steps):
        new = a.mT @ (a @ last)
        for _ in range(2):  # once leaves what rounding left
            new = new - basis @ (basis.mT @ new)
        last = torch.linalg.qr(new).Q
        basis = torch.cat([basis, last], 2)
    image = a @ basis
    values, mix = torch.linalg.eigh(image.mT @ image)  # ascending
    values, mix = values.flip(-1), mix.flip(-1)[..., :q]
    vectors = basis @ mix
    residual = (a.mT @ (image @ mix) - vectors * values[:, None, :q]).norm(dim=1)  # (B, q)
    gap = values.diff(dim=1).neg()[:, :q]  # to the next one
    gap = torch.minimum(gap, torch.cat([gap[:, :1], gap[:, :-1]], 1))
    return vectors, (residual / gap).amax(1)


def random_components(a: Tensor, q: int, seed: int) -> Tensor:
    """The same by a randomised decomposition with two power iterations, as `torch.pca_lowrank` does it.

    One random matrix from a generator of its own serves all crops (B, D, n) -> (B, n, q).
    """
    wide = a.shape[1] < a.shape[2]
    a = a.mT if wide else a  # (B, l, s) with l >= s
    start = torch.randn(a.shape[-1], q, generator=torch.Generator().manual_seed(seed)).to(a)
    basis = torch.linalg.qr(a @ start).Q  # (B, l, q)
    for _ in range(2):
        basis = torch.linalg.qr(a.mT @ basis).Q
        basis = torch.linalg.qr(a @ basis).Q
    u, _, vh = torch.linalg.svd(basis.mT @ a, full_matrices=False)
    return basis @ u if wide else vh.mT


def suppressed(conflict: Tensor) -> Tensor:
    """Greedy suppression as a fixed point: conflict (B, n, n) -> (B, n) bool.

    conflict[b, i, j]: token j is ahead of i and too similar to it. A token with no kept token in conflict is kept,
    any other is suppressed. Each round decides the tokens whose rivals are all decided; the first undecided token
    always is one, so it ends, and usually after few rounds.
    """
    conflict = conflict.float()
    kept = conflict.new_zeros(conflict.shape[:2])
    gone = torch.zeros_like(kept)
    while not bool((kept + gone).all()):
        kept = ((conflict @ (1 - gone)[..., None])[..., 0] == 0).float()
        gone = ((conflict @ kept[..., None])[..., 0] > 0).float()
    return gone.bool()


def quotas(size: Tensor, kept: Tensor, budget: int) -> Tensor:
    """Tokens to take from each group: sizes (B, G) and unsuppressed counts (B, G) -> (B, G), sum budget - 1.

    Shares follow the unsuppressed counts, rounded on their running sum (float64 sum of float32 weights, cast to
    float32, halves to even: ties are real), between 1 and a cap that is raised until the budget fits.
    """
    low = size.clamp(max=1)
    cap = torch.minimum(size, kept).clamp(max=5 * -(-budget // 64))
    while bool((short := (cap.sum(1, keepdim=True) < budget) & (cap < size)).any()):
        cap = cap + short.long()
    extra = (budget - 1 - low.sum(1, keepdim=True)).clamp(min=0)
    weight = kept.float() / kept.sum(1, keepdim=True)
    steps = (weight.double().cumsum(1).float() * extra).round().long()
    taken = torch.minimum(steps.diff(dim=1, prepend=torch.zeros_like(steps[:, :1])) + low, cap)
    order = top(kept, kept.shape[1])  # what is missing goes to the groups with most unsuppressed tokens
    room = (cap - taken).gather(1, order)
    missing = (extra + low.sum(1, keepdim=True) - taken.sum(1, keepdim=True)).clamp(min=0)
    more = torch.minimum(room, (missing - room.cumsum(1) + room).clamp(min=0))
    return taken.scatter_add(1, order, more)


@by_parts
def ordered(hidden: Tensor, attention: Tensor, group: Tensor, groups: int, budget: int) -> Tensor:
    """The kept tokens, group after group: (B, n, D), (B, n), (B, n) in 0..groups-1 -> (B, budget - 1) slots.

    In a group the unsuppressed tokens come first, then the suppressed ones, each by attention. A token is
    suppressed by a more attended one of its group above budget / 32 times the mean pairwise similarity.
    """
    b, n = attention.shape
    similarity = gram(hidden.float())
    pairs = similarity.sum((1, 2), dtype=torch.float64) - similarity.diagonal(dim1=1, dim2=2).double().sum(1)
    threshold = (budget / 32) * (pairs / (n * (n - 1))).float()[:, None, None]
    rank = top(attention, n).argsort(-1)  # (B, n), 0 = most attended
    ahead = (group[:, :, None] == group[:, None, :]) & (rank[:, None, :] < rank[:, :, None])
    gone = suppressed(ahead & (similarity > threshold))
    member = F.one_hot(group, groups)  # (B, n, G)
    size, kept = member.sum(1), (member * ~gone[..., None]).sum(1)
    queue = ((group * 2 + gone) * n + rank).argsort(-1)  # (B, n) by group, then suppressed, then attention
    where = torch.arange(n, device=group.device) - (size.cumsum(1) - size).gather(1, group.gather(1, queue))
    chosen = where < quotas(size, kept, budget).gather(1, group.gather(1, queue))
    return queue[chosen].view(b, budget - 1)


@dataclass
class PruneSID(Pruner):
    """CLS and K - 1 patches: groups by principal component, no look-alikes in a group, quotas by group.

    Source: github.com/ZhengyaoFang/PruneSID @ 4ef17d9, `prunesid/prunesid_llava/clip_encoder.py`. K // 4 groups:
    each patch joins the component that loads it most. Attention is the CLS row summed over heads.

    Differences from the official code: `pca: exact` (default) decomposes exactly, as the official randomised
    decomposition from the unseeded global generator keeps another set on each call; `pca: lowrank` reproduces it
    under `seed`. Patches with zero attention are ordinary, least attended patches: officially they are emitted
    twice, or all together fail. At least one group, so that every budget works; at 1 CLS alone is left.
    """

    pca: str = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("pca", self.pca, ("exact", "lowrank"))

    def belong(self, tokens: VisualTokens) -> Tensor:
        """The group of each patch: (B, n, D) -> (B, n) in 0..G-1; the first of equals."""
        groups = min(self.groups(tokens), *tokens.hidden.shape[1:])
        a = centred(tokens.hidden)
        loads = components(a, groups) if self.pca == "exact" else random_components(a, groups, self.seed)
        return loads.abs().argmax(-1)

    def groups(self, tokens: VisualTokens) -> int:
        """How many groups the budget makes."""
        return max(1, self.keeps(tokens.patches) // 4)

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        budget = self.keeps(tokens.patches)
        if budget == 1:
            return tokens.gather(tokens.index[:, :0]).with_cls()
        attention = tokens.cls_attention.sum(1)
        slots = ordered(tokens.hidden, attention, self.belong(tokens), self.groups(tokens), budget)  # (B, K - 1)
        return tokens.gather(slots).with_cls()
