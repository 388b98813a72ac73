"""Small tensor operations shared by the methods: deterministic, batched, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def top(score: Tensor, k: int) -> Tensor:
    """Slots of the k largest scores: (B, n) -> (B, k), descending; ties go to the lowest slot."""
    return score.float().argsort(dim=-1, descending=True, stable=True)[..., :k]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities in float32: (..., n, D), (..., m, D) -> (..., n, m); a zero vector gives zeros."""
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).transpose(-1, -2)


def centres(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch centres in [0, 1] x [0, 1]: patch numbers (B, n) -> (B, n, 2) as (row, column)."""
    rows, columns = grid
    return ((index[..., None] // index.new_tensor([columns, 1])) % index.new_tensor([rows, columns]) + 0.5) / (
        index.new_tensor([rows, columns]).float()
    )


def standardise(x: Tensor) -> Tensor:
    """Zero mean and unit spread over the last axis: (B, n) -> (B, n); a constant row gives zeros."""
    mean = x.mean(-1, keepdim=True)
    spread = x.std(-1, keepdim=True, unbiased=False)
    return (x - mean) / spread.clamp(min=1e-6)


def assign_sum(x: Tensor, owner: Tensor, k: int) -> Tensor:
    """Sums over owners: x (B, n, D) with owner (B, n) in 0..k-1 -> (B, k, D)."""
    out = x.new_zeros(x.shape[0], k, x.shape[2])
    return out.scatter_add_(1, owner[..., None].expand_as(x), x)


def unit(x: Tensor) -> Tensor:
    """Unit vectors (..., D) in the dtype of `x`; a zero vector stays zero."""
    return F.normalize(x, dim=-1)


def gram(x: Tensor) -> Tensor:
    """Cosine similarities of a set with itself, in the dtype of `x`: (B, n, D) -> (B, n, n)."""
    u = unit(x)
    return u @ u.transpose(-1, -2)


def dots(x: Tensor, v: Tensor) -> Tensor:
    """Products of each row of `x` (B, n, D) with `v` (B, D): (B, n).

    Image by image: a batched matrix-vector product rounds differently alone and inside a batch.
    """
    return torch.stack([rows @ vector for rows, vector in zip(x, v)])


def never_zero(x: Tensor, fallback: Tensor) -> Tensor:
    """`x` (..., D) with each all-zero row replaced by that row of `fallback`: an average can cancel out."""
    return torch.where((x == 0).all(-1, keepdim=True), fallback, x)


def others(chosen: Tensor, n: int) -> Tensor:
    """The slots of 0..n-1 that are not among the distinct `chosen` (B, k): (B, n - k), ascending."""
    taken = torch.zeros(len(chosen), n, device=chosen.device).scatter_(1, chosen, 1.0)
    return taken.argsort(dim=1, stable=True)[:, : n - chosen.shape[1]]
