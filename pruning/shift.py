"""kappa = D(X_k, X_f): how far the kept tokens' distribution has moved from the full set's. Lower is better.

The paper (arXiv 2606.16633) names the measure and says what it is for; its formula is not public. Every formula
here is therefore a *reconstruction*: the default is the KL divergence between diagonal Gaussians, the others are the
candidates that a run records next to it.

    shift(kept, full, "energy")                    one metric
    known = sets.statistics(full)                  the full set's side, once an image
    all_shifts(kept, known)                        every metric, sharing what they share

`kept` is (B, K, D) and `full` is (B, N, D), or (1, N, D) where all rows are of one image, or its `FullStatistics`;
every result is (B,). All metrics are free of the features' scale. Computed in float32, or in float64 if the features
are. Population moments (divided by the count). A row with NaN or infinite features, or with no kept token, gives NaN;
K = 1 is finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pruning.errors import unknown
from pruning.sets import FLOOR, FullStatistics, Pair, pair_of


def gaussian_kl(pair: Pair) -> Tensor:
    """kappa: KL(kept || full) of diagonal Gaussians, mean over dimensions.

    1/2 mean_d [ v_k/v_f + (m_k - m_f)^2 / v_f - 1 - ln(v_k/v_f) ]. Rises again when the kept set is over-dispersed.
    """
    return diagonal_kl(pair.mean, pair.variance, pair.full.variance)


def reversed_kl(pair: Pair) -> Tensor:
    """KL(full || kept) of diagonal Gaussians, mean over dimensions."""
    return diagonal_kl(pair.mean, pair.full.variance, pair.variance)


def jeffreys(pair: Pair) -> Tensor:
    """The sum of both KL directions."""
    return gaussian_kl(pair) + reversed_kl(pair)


def principal_kl(pair: Pair) -> Tensor:
    """`gaussian_kl` along the full set's 32 leading principal components, where its covariance is diagonal."""
    axes, values = pair.full.axes
    along = pair.tokens @ axes  # (B, K, c)
    return diagonal_kl(along.mean(1), pair.full.floored(along.var(1, unbiased=False)), values)


def moments(pair: Pair) -> Tensor:
    """|m_k - m_f|^2 / tr S_f + |ln(tr S_k / tr S_f)|, tr S_k floored."""
    least = (FLOOR * pair.full.trace).clamp(min=torch.finfo(pair.mean.dtype).tiny)
    ratio = torch.maximum(pair.raw_variance.sum(1), least) / pair.full.trace
    return pair.mean.square().sum(1) / pair.full.trace + ratio.log().abs()


def frechet(pair: Pair) -> Tensor:
    """Squared 2-Wasserstein distance of Gaussians with full covariances, over tr S_f.

    |m_k - m_f|^2 + tr S_k + tr S_f - 2 tr (S_f^1/2 S_k S_f^1/2)^1/2. The last trace is the nuclear norm of
    X_k S_f^1/2 / sqrt(K), so no D x D matrix root is needed.
    """
    mixed = pair.centred @ pair.full.root / pair.centred.shape[1] ** 0.5  # (B, K, q)
    overlap = torch.linalg.svdvals(mixed).sum(1)
    apart = pair.mean.square().sum(1) + pair.raw_variance.sum(1) + pair.full.spectrum.sum(1) - 2 * overlap
    return (apart / pair.full.trace).clamp(min=0)


def sliced_wasserstein(pair: Pair) -> Tensor:
    """Root mean square over 64 fixed random directions of the exact one-dimensional W2, over the mean deviation."""
    kept, full = (pair.tokens @ pair.full.directions).sort(1).values, pair.full.sliced
    k, n = kept.shape[1], full.shape[1]
    # both quantile functions are steps; between two neighbours of all multiples of 1/k and 1/n both are constant
    cuts = torch.cat([torch.arange(k, device=kept.device) * n, torch.arange(n + 1, device=kept.device) * k]).unique()
    start, length = cuts[:-1], cuts.diff().to(kept.dtype) / (k * n)
    squared = (kept[:, start // n] - full[:, start // k]).square()  # (B, cuts, 64)
    mean = (squared.mean(2) * length).sum(1)
    return (mean * pair.full.tokens.shape[2] / pair.full.trace).sqrt()


def mmd(pair: Pair) -> Tensor:
    """Squared maximum mean discrepancy (V-statistic), exp(-d^2 / (2 s^2)) with s the full set's median distance."""
    cross = (-pair.distances / pair.full.bandwidth).exp().mean((1, 2))
    inner = (-pair.inner / pair.full.bandwidth).exp().mean((1, 2))
    return (inner + pair.full.kernel - 2 * cross).clamp(min=0)


def energy(pair: Pair) -> Tensor:
    """Energy distance 2 E|x-y| - E|x-x'| - E|y-y'| (V-statistic), over E|y-y'| of the full set."""
    apart = 2 * pair.distances.sqrt().mean((1, 2)) - pair.inner.sqrt().mean((1, 2)) - pair.full.spread
    return (apart / pair.full.spread).clamp(min=0)


def effective_rank(pair: Pair) -> Tensor:
    """|ln(erank_k / erank_f)|, erank = exp of the entropy of the covariance's eigenvalues as shares."""
    x = pair.centred
    gram = x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x
    return (spectral_entropy(torch.linalg.eigvalsh(gram)) - spectral_entropy(pair.full.spectrum)).abs()


def coverage(pair: Pair) -> Tensor:
    """Mean distance of each full token to its nearest kept one, over the full set's root mean square radius."""
    return pair.distances.amin(1).sqrt().mean(1) / pair.full.trace.sqrt()


MEASURES: tuple[Callable[[Pair], Tensor], ...] = (
    gaussian_kl, reversed_kl, jeffreys, principal_kl, moments, frechet, sliced_wasserstein, mmd, energy,
    effective_rank, coverage,
)  # fmt: skip


def compare(measure: Callable[[Pair], Tensor], pair: Pair) -> Tensor:
    """(B,) the measure, NaN where the features are not finite or nothing was kept."""
    if pair.tokens.shape[1] == 0:
        return pair.tokens.new_full((len(pair.tokens),), torch.nan)
    return torch.where(pair.finite, measure(pair), torch.nan)


def _public(measure: Callable[[Pair], Tensor]) -> Callable[[Tensor, Tensor | FullStatistics], Tensor]:
    return lambda kept, full: compare(measure, pair_of(kept, full))


METRICS = {measure.__name__: _public(measure) for measure in MEASURES}  # name -> (kept, full) -> (B,)


def shift(kept: Tensor, full: Tensor | FullStatistics, metric: str = "gaussian_kl") -> Tensor:
    """One metric of kept (B, K, D) against full (B, N, D) -> (B,).

    Raises:
        InputError: unknown metric; the nearest names are given.
    """
    return METRICS[known(metric)](kept, full)


def all_shifts(kept: Tensor, full: Tensor | FullStatistics) -> dict[str, Tensor]:
    """Every metric of kept (B, K, D) against full (B, N, D) -> name: (B,)."""
    pair = pair_of(kept, full)
    return {measure.__name__: compare(measure, pair) for measure in MEASURES}


def known(metric: str) -> str:
    """The metric's name, if there is such a metric.

    Raises:
        InputError: unknown metric; the nearest names are given.
    """
    if metric not in METRICS:
        raise unknown("shift metric", metric, METRICS)
    return metric


def output_kl(pruned: Tensor, full: Tensor) -> Tensor:
    """KL(full || pruned) in nats of two next-token distributions: logits (B, V), (B, V) -> (B,).

    The unpruned model is the reference, as when a compressed model is compared with its original: the log-loss that
    the pruned answer pays above the least possible. The yardstick for the feature metrics, which need no model call.
    """
    p, q = full.float().log_softmax(-1), pruned.float().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp(min=0)


def diagonal_kl(apart: Tensor, variance: Tensor, reference: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians, mean over d: difference of means, variances of p and of q, each (B, d)."""
    ratio = variance / reference
    return (ratio + apart.square() / reference - 1 - ratio.log()).mean(1) / 2


def spectral_entropy(values: Tensor) -> Tensor:
    """Entropy in nats of eigenvalues (B, q) as a distribution; 0 where they are all zero."""
    values = values.clamp(min=0)
    share = values / values.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum(1)
