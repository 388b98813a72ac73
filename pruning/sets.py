"""A full set of tokens, and a kept set seen from it: what the metrics of `pruning.shift` share, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

FLOOR = 1e-4  # least variance, as a fraction of the full set's mean variance; keeps K = 1 finite
COMPONENTS = 32  # leading principal components of `principal_kl`
DIRECTIONS = 64  # of `sliced_wasserstein`


@dataclass(frozen=True)
class FullStatistics:
    """The full set's side of every metric; each part is computed when a metric first asks for it.

    All of it is in units of `size`, in which no square leaves the range of the numbers.
    """

    tokens: Tensor  # (B, N, D) centred on `mean`; rows of an image with non-finite features are zero
    mean: Tensor  # (B, D)
    finite: Tensor  # (B,) bool
    size: Tensor  # (B, 1, 1) power of two, of the largest feature: dividing by it rounds nothing

    @cached_property
    def variance(self) -> Tensor:
        """(B, D) floored."""
        return self.floored(self.tokens.square().mean(1))

    @cached_property
    def trace(self) -> Tensor:
        """(B,) total variance, at least a tiny number."""
        return self.tokens.square().mean(1).sum(1).clamp(min=torch.finfo(self.tokens.dtype).tiny)

    @cached_property
    def root(self) -> Tensor:
        """(B, D, q) principal axes times their standard deviation, largest last; root root^T is the covariance."""
        x = self.tokens / self.tokens.shape[1] ** 0.5
        if x.shape[1] < x.shape[2]:  # the smaller side; axes x^T u, already of the right length
            return x.mT @ torch.linalg.eigh(x @ x.mT).eigenvectors
        values, axes = torch.linalg.eigh(x.mT @ x)
        return axes * values.clamp(min=0).sqrt()[:, None]

    @cached_property
    def spectrum(self) -> Tensor:
        """(B, q) variances along `root`."""
        return self.root.square().sum(1)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Leading unit axes (B, D, c) and their variances (B, c), floored."""
        values, scaled = self.spectrum[:, -COMPONENTS:], self.root[:, :, -COMPONENTS:]
        unit = scaled / values.sqrt().clamp(min=torch.finfo(scaled.dtype).tiny)[:, None]
        return unit, self.floored(values)

    @property
    def directions(self) -> Tensor:
        """(D, 64) random unit vectors, the same for every image and run."""
        return random_directions(self.tokens.shape[2], self.tokens.dtype, self.tokens.device)

    @cached_property
    def sliced(self) -> Tensor:
        """(B, N, 64) projections on `directions`, sorted."""
        return (self.tokens @ self.directions).sort(1).values

    @cached_property
    def pairwise(self) -> tuple[Tensor, Tensor, Tensor]:
        """`spread`, `bandwidth` and `kernel`; the (B, N, N) distances that they come from are not kept."""
        n, squared = self.tokens.shape[1], squared_distances(self.tokens, self.tokens)
        tiny = torch.finfo(squared.dtype).tiny
        spread = squared.sqrt().mean((1, 2)).clamp(min=tiny)
        different = torch.ones(n, n, dtype=torch.bool, device=squared.device).triu(int(n > 1))  # N = 1: itself
        median = squared[:, different].median(1).values
        bandwidth = (2 * median).clamp(min=tiny)[:, None, None]
        return spread, bandwidth, (-squared / bandwidth).exp().mean((1, 2))

    @property
    def spread(self) -> Tensor:
        """(B,) mean distance of two tokens of the full set (V-statistic)."""
        return self.pairwise[0]

    @property
    def bandwidth(self) -> Tensor:
        """(B, 1, 1) twice the squared median distance between two different tokens."""
        return self.pairwise[1]

    @property
    def kernel(self) -> Tensor:
        """(B,) mean RBF kernel of two tokens of the full set (V-statistic)."""
        return self.pairwise[2]

    def floored(self, variance: Tensor) -> Tensor:
        """Variances (B, d) raised to at least `FLOOR` times the full set's mean variance over its D dimensions."""
        return torch.maximum(variance, (FLOOR * self.trace / self.tokens.shape[2])[:, None])


def statistics(full: Tensor) -> FullStatistics:
    """The full set (B, N, D), centred; its costly parts are computed once, when first asked for."""
    x = full if full.dtype == torch.float64 else full.float()
    finite = x.isfinite().all(dim=2).all(dim=1)
    x = torch.where(finite[:, None, None], x, 0.0)
    largest = x.abs().amax((1, 2), keepdim=True)
    size = torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1.0)
    x = x / size
    mean = x.mean(1)
    return FullStatistics(x - mean[:, None], mean, finite, size)


class Pair:
    """A kept set (B, K, D) seen from its full set: what several metrics share."""

    def __init__(self, kept: Tensor, full: FullStatistics) -> None:
        x = kept.to(full.tokens.dtype) / full.size
        self.finite = x.isfinite().all(dim=2).all(dim=1) & full.finite
        self.full = full
        self.tokens = torch.where(self.finite[:, None, None], x - full.mean[:, None], 0.0)  # full mean at the origin
        self.mean = self.tokens.mean(1)  # (B, D)
        self.centred = self.tokens - self.mean[:, None]  # (B, K, D)

    @cached_property
    def raw_variance(self) -> Tensor:
        """(B, D)."""
        return self.centred.square().mean(1)

    @cached_property
    def variance(self) -> Tensor:
        """(B, D) floored."""
        return self.full.floored(self.raw_variance)

    @cached_property
    def distances(self) -> Tensor:
        """(B, K, N) squared, kept to full."""
        return squared_distances(self.tokens, self.full.tokens)

    @cached_property
    def inner(self) -> Tensor:
        """(B, K, K) squared, kept to kept."""
        return squared_distances(self.tokens, self.tokens)


def pair_of(kept: Tensor, full: Tensor | FullStatistics) -> Pair:
    """The two sets prepared for any measure."""
    return Pair(kept, full if isinstance(full, FullStatistics) else statistics(full))


@lru_cache(maxsize=8)
def random_directions(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(D, 64) unit vectors drawn with a fixed seed."""
    drawn = torch.randn(dim, DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / drawn.norm(dim=0)).to(device=device, dtype=dtype)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, D), (B, m, D) -> (B, n, m); B may be 1 on one side. What is below its terms' rounding is zero, as for
    equal tokens.
    """
    norms = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None]
    squared = torch.baddbmm(norms, a.expand(len(norms), -1, -1), b.mT.expand(len(norms), -1, -1), alpha=-2)
    return torch.where(squared > 16 * torch.finfo(a.dtype).eps * norms, squared, 0.0)
