"""Every shift metric against an independent computation: scipy, numpy, closed form or brute force, in float64."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist, pdist
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pruning.errors import InputError
from pruning.sets import COMPONENTS, DIRECTIONS, FLOOR, statistics
from pruning.shift import METRICS, all_shifts, output_kl, shift

Array = np.ndarray


def sets(k: int, n: int = 60, d: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two images: kept tokens (2, k, d) that are not all in full (2, n, d), unequal scales, float64."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3, d, dtype=torch.float64)
    full = torch.randn(2, n, d, generator=g, dtype=torch.float64) * scale + 2
    kept = torch.randn(2, k, d, generator=g, dtype=torch.float64) * scale * 0.7 + 2.4
    return kept, full


def variances(kept: Array, full: Array) -> tuple[Array, Array]:
    floor = FLOOR * full.var(0).mean()
    return np.maximum(kept.var(0), floor), np.maximum(full.var(0), floor)


def normal_kl(m: Array, v: Array, m2: Array, v2: Array) -> float:
    p, q = (Normal(torch.as_tensor(a), torch.as_tensor(b).sqrt()) for a, b in ((m, v), (m2, v2)))
    return kl_divergence(p, q).mean().item()


def gaussian_kl(kept: Array, full: Array) -> float:
    vk, vf = variances(kept, full)
    return normal_kl(kept.mean(0), vk, full.mean(0), vf)


def reversed_kl(kept: Array, full: Array) -> float:
    vk, vf = variances(kept, full)
    return normal_kl(full.mean(0), vf, kept.mean(0), vk)


def jeffreys(kept: Array, full: Array) -> float:
    return gaussian_kl(kept, full) + reversed_kl(kept, full)


def principal_kl(kept: Array, full: Array) -> float:
    _, _, axes = np.linalg.svd(full - full.mean(0), full_matrices=False)
    axes = axes[:COMPONENTS].T
    floor, a, b = FLOOR * full.var(0).mean(), kept @ axes, full @ axes
    return normal_kl(a.mean(0), np.maximum(a.var(0), floor), b.mean(0), np.maximum(b.var(0), floor))


def moments(kept: Array, full: Array) -> float:
    a, b = (np.trace(np.atleast_2d(np.cov(x.T, bias=True))) for x in (kept, full))
    return np.sum((kept.mean(0) - full.mean(0)) ** 2) / b + abs(np.log(max(a / b, FLOOR)))


def frechet(kept: Array, full: Array) -> float:
    a, b = (np.cov(x.T, bias=True) for x in (kept, full))
    values, axes = np.linalg.eigh(b)
    root = axes * np.sqrt(values.clip(0)) @ axes.T
    squares = np.linalg.eigvalsh(root @ a @ root)
    mixed = np.sqrt(squares[squares > 1e-12 * squares.max()]).sum()
    return (np.sum((kept.mean(0) - full.mean(0)) ** 2) + np.trace(a + b) - 2 * mixed) / np.trace(b)


def sliced_wasserstein(kept: Array, full: Array) -> float:
    axes = statistics(torch.as_tensor(full)[None]).directions.numpy()
    k, n = len(kept), len(full)
    # both sets repeated to k * n atoms: the optimal plan pairs them in order
    pairs = ((np.sort(np.repeat(kept @ u, n)), np.sort(np.repeat(full @ u, k))) for u in axes.T)
    total = sum(np.mean((a - b) ** 2) for a, b in pairs) / DIRECTIONS
    return np.sqrt(total / full.var(0).mean())


def mmd(kept: Array, full: Array) -> float:
    distances = np.sort(pdist(full))
    width = distances[(len(distances) - 1) // 2]
    kernel = [
        np.exp(-(cdist(a, b) ** 2) / (2 * width**2)).mean() for a, b in ((kept, kept), (full, full), (kept, full))
    ]
    return kernel[0] + kernel[1] - 2 * kernel[2]


def energy(kept: Array, full: Array) -> float:
    inner = cdist(full, full).mean()
    return (2 * cdist(kept, full).mean() - cdist(kept, kept).mean() - inner) / inner


def effective_rank(kept: Array, full: Array) -> float:
    def rank(x: Array) -> float:
        share = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        return np.exp(scipy.stats.entropy(share)) if share.sum() > 1e-20 else 1.0

    return abs(np.log(rank(kept) / rank(full)))


def coverage(kept: Array, full: Array) -> float:
    return cdist(full, kept).min(1).mean() / np.sqrt(full.var(0).sum())


ORACLES: dict[str, Callable[[Array, Array], float]] = {
    f.__name__: f
    for f in (
        gaussian_kl, reversed_kl, jeffreys, principal_kl, moments, frechet, sliced_wasserstein, mmd, energy,
        effective_rank, coverage,
    )
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 60, 7), (4, 60, 7), (30, 60, 7), (5, 40, 90), (50, 40, 90)])
@pytest.mark.parametrize("name", METRICS)
def test_equals_an_independent_computation(name: str, shape: tuple[int, int, int]) -> None:
    kept, full = sets(*shape)
    expected = [ORACLES[name](a, b) for a, b in zip(kept.numpy(), full.numpy())]
    assert shift(kept, full, name).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_default_is_kappa_in_closed_form() -> None:
    full = torch.tensor([[[0.0, -2], [2, 2]]])  # means (1, 0), variances (1, 4)
    kept = torch.tensor([[[1.0, 2], [5, 6]]])  # means (3, 4), variances (4, 4)
    expected = ((4 + 4 - 1 - np.log(4)) + (1 + 16 / 4 - 1 - 0)) / 4
    assert shift(kept, full).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_zero_for_the_full_set_and_free_of_scale_place_and_order(name: str) -> None:
    kept, full = sets(9)
    value = shift(kept, full, name)
    assert (value > 1e-3).all()
    assert shift(full, full, name).abs().max() < 1e-6
    torch.testing.assert_close(shift(kept.flip(1), full.flip(1), name), value)
    torch.testing.assert_close(shift(40 * kept - 7, 40 * full - 7, name), value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scale", [2.0**123, 2.0**66, 2.0**-83])
def test_no_square_leaves_the_range_of_float32(scale: float) -> None:
    kept, full = (x.float() for x in sets(9))
    for name, values in all_shifts(kept * scale, full * scale).items():
        assert torch.equal(values, shift(kept, full, name)), name


def test_shared_work_changes_nothing_and_images_stay_apart() -> None:
    kept, full = sets(9)
    together, known = all_shifts(kept, full), statistics(full)
    again = all_shifts(kept, known)
    assert list(together) == list(METRICS)
    for name, values in together.items():
        assert torch.equal(again[name], values)
        assert torch.equal(shift(kept, known, name), values)
        torch.testing.assert_close(values[1:], shift(kept[1:], full[1:], name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_finite_features_give_nan_to_their_image_only(bad: float) -> None:
    kept, full = (x.float() for x in sets(9))
    good = all_shifts(kept, full)
    for place in (kept, full):
        old = place[0, 3, 2].clone()
        place[0, 3, 2] = bad
        for name, values in all_shifts(kept, full).items():
            assert values[0].isnan()
            torch.testing.assert_close(values[1], good[name][1], rtol=1e-4, atol=1e-5)
        place[0, 3, 2] = old


def test_nothing_kept_gives_nan_and_constant_sets_are_finite() -> None:
    kept, full = sets(9)
    assert all(v.isnan().all() for v in all_shifts(kept[:, :0], full).values())
    same = torch.ones(1, 20, 5)
    for value in (*all_shifts(same[:, :1], same).values(), *all_shifts(same[:, :3].half(), same.half()).values()):
        assert value.isfinite().all() and value.abs().max() < 1e-5


def test_kappa_falls_then_rises_again_as_the_kept_spread_passes_the_full_spread() -> None:
    full = sets(1)[1]
    spread = [shift(full.mean(1, keepdim=True) + s * (full - full.mean(1, keepdim=True)), full) for s in (0.3, 1, 2)]
    assert (spread[0] > spread[1]).all() and (spread[2] > spread[1]).all()


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown shift metric 'gausian_kl'; did you mean gaussian_kl"):
        shift(*sets(3), "gausian_kl")


def test_output_kl_is_the_extra_log_loss_of_the_pruned_answer() -> None:
    pruned, full = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    expected = [scipy.stats.entropy(scipy.special.softmax(f), scipy.special.softmax(p)) for p, f in zip(pruned, full)]
    assert output_kl(pruned, full).tolist() == pytest.approx(expected, rel=1e-5)
    assert output_kl(full, full).abs().max() == 0


def test_all_metrics_of_a_sample_are_cheap() -> None:
    full = torch.randn(1, 576, 192, generator=torch.Generator().manual_seed(0))
    known, kept, seconds = statistics(full), full[:, :16], []
    for _ in range(12):
        start = time.perf_counter()
        all_shifts(kept, known)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02  # 2 ms on an idle core; ten times that on a crowded one
