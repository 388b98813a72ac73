"""How well a shift metric goes with accuracy: Pearson, Spearman and Kendall (tau-b), with bootstrap intervals.

Two sizes of the same question. Between points there are some hundred pairs at most: every draw recomputes the
coefficient. Between samples there may be a million: the coefficient is linearised once (its gradient with respect to
the weight of each sample), the gradients are summed per image, and images are drawn from these sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eval.statistics import DRAWS, SEED, image_weights, interval

KINDS = ("pearson", "spearman", "kendall")


class Correlation(NamedTuple):
    """A coefficient with its interval, from n pairs in `units` independent units; NaN where it is undefined."""

    value: float
    low: float
    high: float
    n: int
    units: int


def weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray, kind: str) -> np.ndarray:
    """Coefficients (R,) of x (n,) and y (n,) under integer weights (R, n): as if each pair were there so often.

    NaN where x or y is constant under a row of weights.
    """
    if kind == "kendall":
        a, b = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
        parts = [np.einsum("rn,rn->r", weights @ m, weights) for m in (a * b, a * a, b * b)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return parts[0] / np.sqrt(parts[1] * parts[2])
    if kind == "spearman":  # weighted mid-ranks, up to a constant
        x, y = (weights @ (np.sign(v - v[:, None]) / 2) for v in (x, y))
    x, y = np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape)
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    xx, yy, xy = ((weights * u * v).sum(1) for u, v in ((x, x), (y, y), (x, y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((xx > 1e-18) & (yy > 1e-18), xy / np.sqrt(xx * yy), np.nan)


def between_points(x: np.ndarray, y: np.ndarray, unit: np.ndarray, kind: str, draws: int = DRAWS) -> Correlation:
    """Correlation over all points (n,), drawing whole units (a method with its budgets) with replacement."""
    x, y, unit = finite(x, y, unit)
    units, unit = np.unique(unit, return_inverse=True)
    if len(x) < 3:
        return Correlation(np.nan, np.nan, np.nan, len(x), len(units))
    value = float(weighted(x, y, np.ones((1, len(x))), kind)[0])
    if len(units) < 3:
        return Correlation(value, np.nan, np.nan, len(x), len(units))
    drawn = [weighted(x, y, w[:, unit], kind) for w in image_weights(len(units), draws, SEED)]
    return Correlation(value, *interval(np.concatenate(drawn)), len(x), len(units))


def within_units(x: np.ndarray, y: np.ndarray, unit: np.ndarray, kind: str, draws: int = DRAWS) -> Correlation:
    """Mean over units (methods) of the correlation over each one's own points (at least 3), drawing units."""
    x, y, unit = finite(x, y, unit)
    each = []
    for name in np.unique(unit):
        mine = unit == name
        if mine.sum() >= 3:
            each.append(weighted(x[mine], y[mine], np.ones((1, int(mine.sum()))), kind)[0])
    values = np.array([v for v in each if np.isfinite(v)])
    if not len(values):
        return Correlation(np.nan, np.nan, np.nan, len(x), 0)
    if len(values) < 3:
        return Correlation(float(values.mean()), np.nan, np.nan, len(x), len(values))
    drawn = np.concatenate([w @ values / len(values) for w in image_weights(len(values), draws, SEED)])
    return Correlation(float(values.mean()), *interval(drawn), len(x), len(values))


def between_samples(x: np.ndarray, y: np.ndarray, image: np.ndarray, kind: str, draws: int = 500) -> Correlation:
    """Correlation over samples (n,), drawing images; `y` may have few distinct values (rounded to 0.01 for Kendall).

    The interval is that of the linearised coefficient on Fisher's z scale, so it stays within -1..1.
    """
    x, y, image = finite(x, y, image)
    images, image = np.unique(image, return_inverse=True)
    if len(x) < 3 or len(images) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, np.nan, np.nan, len(x), len(images))
    if kind == "kendall":
        value, slope = kendall_gradient(x, np.round(y, 2))
    elif kind == "spearman":
        value, slope = spearman_gradient(x, y)
    else:
        value, slope = pearson_gradient(x, y)
    if abs(value) >= 1 - 1e-12:
        return Correlation(value, value, value, len(x), len(images))
    pull = np.bincount(image, slope / (1 - value**2), len(images))
    drawn = np.concatenate([w @ pull for w in image_weights(len(images), draws, SEED)]) - pull.sum()
    low, high = interval(np.tanh(np.arctanh(value) + drawn))
    return Correlation(value, low, high, len(x), len(images))


def pearson_gradient(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """r and its derivative with respect to the weight of each pair, (n,)."""
    a, b = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    r = float((a * b).mean())
    return r, (a * b - r * (a * a + b * b) / 2) / len(x)


def spearman_gradient(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """rho (mid-ranks) and its derivative with respect to the weight of each pair, (n,).

    A pair's weight enters through its own term and by moving the ranks of all others; the second part is a sum of the
    other coordinate's ranks over the pairs above and below, which sorting gives at once.
    """
    n, in_x, in_y = len(x), Ties(x), Ties(y)
    a, b = (ties.above(np.ones(n)) / (-2 * n) for ties in (in_x, in_y))  # centred mid-ranks over n
    norm = np.sqrt((a @ a) * (b @ b))
    rho = float(a @ b / norm)
    joint = a * b + (in_x.above(b) + in_y.above(a)) / (2 * n)
    alone = (a * a + in_x.above(a) / n) / (a @ a) + (b * b + in_y.above(b) / n) / (b @ b)
    return rho, joint / norm - rho * alone / 2


def kendall_gradient(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """tau-b and its derivative with respect to the weight of each pair, (n,); cost grows with y's distinct values."""
    ties, concordant = Ties(x), np.zeros(len(x))
    for level in np.unique(y):
        concordant -= np.sign(y - level) * ties.above((y == level).astype(float))
    counts = []
    for v in (x, y):
        _, inverse, size = np.unique(v, return_inverse=True, return_counts=True)
        counts.append(len(v) - size[inverse].astype(float))  # pairs in which this coordinate differs
    c, (dx, dy) = concordant, counts
    tau = c.sum() / np.sqrt(dx.sum() * dy.sum())
    slope = 2 * c / np.sqrt(dx.sum() * dy.sum()) - tau * (dx / dx.sum() + dy / dy.sum())
    return float(tau), slope


class Ties:
    """The order of values (n,), sorted once, to sum other values over what lies above and below each."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.group = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]])
        self.starts, self.ends = starts, np.r_[starts[1:], len(values)]

    def above(self, other: np.ndarray) -> np.ndarray:
        """(n,) sum of `other` over larger values minus the sum over smaller ones; ties count nothing."""
        total = np.r_[0.0, np.cumsum(other[self.order])]
        balance = total[-1] - total[self.ends] - total[self.starts]
        out = np.empty(len(other))
        out[self.order] = balance[self.group]
        return out


def finite(x: np.ndarray, y: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs in which both are finite, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good], np.asarray(unit)[good]
