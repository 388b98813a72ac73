"""Small tensor operations shared by the methods: deterministic, batched, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

CACHE = 6 * 2**20  # bytes of the largest argument that a part of a batch may have on a CPU
STRIPS = 6  # of a Gram matrix: the more, the less is computed twice, but the smaller each product


def by_parts(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: on a CPU a few images of the batch at a time, so that what they become stays in the cache.

    Arguments that are tensors, and the result, have the batch B in front, (B, ...); one tensor at least, equally long
    all. Images must not depend on each other: the parts are joined as they come.
    """

    @wraps(function)
    def in_parts(*arguments: object) -> Tensor:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        images, bytes_ = len(tensors[0]), max(x.nbytes for x in tensors)
        step = max(1, CACHE * images // max(bytes_, 1)) if tensors[0].device.type == "cpu" else images
        if step >= images:
            return function(*arguments)
        parts = [slice(low, low + step) for low in range(0, images, step)]
        return torch.cat([function(*(x[p] if isinstance(x, Tensor) else x for x in arguments)) for p in parts])

    return in_parts


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
    return products(unit(x))


def products(x: Tensor) -> Tensor:
    """All dot products of a set with itself: (B, n, D) -> (B, n, n), symmetric; each strip from its diagonal on."""
    n = x.shape[1]
    out, height = x.new_empty(*x.shape[:2], n), max(1, -(-n // STRIPS))
    for low in range(0, n, height):
        high = min(low + height, n)
        strip = x[:, low:high] @ x[:, low:].mT
        out[:, low:high, low:] = strip
        out[:, high:, low:high] = strip[..., high - low :].mT
    return out


def one_by_one(u: Tensor, picks: int) -> Callable[[Tensor], Tensor]:
    """A function from slots (B,) to their products with all rows of `u` (B, n, D): (B, n), called `picks` times.

    Few picks need not pay for all n x n products; a product asked for alone costs about four of a whole matrix.
    """
    image = torch.arange(len(u), device=u.device)
    if 4 * picks < u.shape[1]:
        return lambda slot: dots(u, u[image, slot])
    every = products(u)
    return lambda slot: every[image, slot]


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
