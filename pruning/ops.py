"""Small tensor operations shared by the methods: deterministic, batched, float32."""

from __future__ import annotations

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
