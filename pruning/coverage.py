"""Lazy greedy coverage: each pick is the token that adds most to how well the picks resemble all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CANDIDATES = 16  # gains recomputed at first; twice as many each time that they did not settle the pick
FEW = 256  # tokens of which all gains cost less than to find out which ones are needed
Gains = Callable[[Tensor, Tensor | None], Tensor]  # cover (B, n), rows (B, m) or None for all -> exact gains (B, m)


def lazy_greedy(similarity: Tensor, gains: Gains, k: int) -> Tensor:
    """Slots (B, k) in order of choice, the first of equals; a smaller k gives a prefix.

    Args:
        similarity: (B, n, n); cover_j is the largest similarity of token j to a pick, 0 at first.
        gains: what a token would add. It must never grow while the cover does: then gains of earlier picks bound
            those of later ones from above, and an exact gain above all bounds is the largest, which spares most of
            the O(n^2) of a pick.
        k: at most n.
    """
    b, n, _ = similarity.shape
    image = torch.arange(b, device=similarity.device)
    cover = similarity.new_zeros(b, n)
    bound = gains(cover, None)
    picks: list[Tensor] = []
    for _ in range(k):
        if picks and n <= FEW:
            bound = torch.where(bound == -torch.inf, bound, gains(cover, None))
        elif picks:
            bound = settle(bound, gains, cover)
        picks.append(bound.argmax(-1))  # (B,)
        bound[image, picks[-1]] = -torch.inf
        cover = torch.maximum(cover, similarity[image, picks[-1]])
    return torch.stack(picks, 1)


def settle(bound: Tensor, gains: Gains, cover: Tensor) -> Tensor:
    """Lowers the upper bounds (B, n) of the gains until the largest of each image is exact."""
    m = CANDIDATES
    while m < bound.shape[1]:
        highest, rows = bound.topk(m + 1)
        fresh = torch.fmin(gains(cover, rows[:, :m]), highest[:, :m])  # picked: -inf stays, also beside NaN
        bound = bound.scatter(1, rows[:, :m], fresh)
        if (fresh.amax(1) > highest[:, m]).all():  # above all that was not computed; equals would be decided by slot
            return bound
        m *= 2
    return torch.fmin(gains(cover, None), bound)


def headroom(similarity: Tensor, cover: Tensor, rows: Tensor | None) -> Tensor:
    """max(0, S_ij - cover_j) of tokens i in `rows` (all for None): (B, n, n), (B, n), (B, m) -> (B, m, n)."""
    if rows is None:
        return (similarity - cover[:, None]).clamp_(min=0)
    image = torch.arange(len(rows), device=rows.device)[:, None]
    return similarity[image, rows].sub_(cover[:, None]).clamp_(min=0)
