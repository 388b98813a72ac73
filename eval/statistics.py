"""Uncertainty of scores and of differences between methods.

Questions on one image are not independent, so the unit that is drawn is the image (cluster bootstrap). Tasks that
share images are drawn together, tasks on images of their own are drawn apart, so that each keeps its image count.
Every draw applies to all points of a sweep at once: that is what makes all comparisons paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.scores import COUNT, percent, tally_frame

DRAWS, SEED = 2000, 0
BLOCK = 1_000_000  # image draws held in memory at a time


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """a - b with its interval and two-sided p value, from `images` images that both answered."""

    estimate: float
    low: float
    high: float
    p: float
    images: int


def score_interval(samples: pd.DataFrame, level: float = 0.95, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """Percentile bootstrap interval over images of `scores.task_score`, in percent.

    Args:
        samples: one task's rows: score (0..1), image_id, and pair_id where questions come in pairs.
    """
    drawn = percent(resample(tally_frame(samples.assign(task="")), draws, seed))  # (draws, 1, 1)
    return interval(drawn[:, 0, 0], level)


def paired_difference(
    samples_a: pd.DataFrame,
    samples_b: pd.DataFrame,
    vanilla: pd.DataFrame | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Difference]:
    """a - b for every task (percentage points) and for "average", on the same questions, paired image by image.

    "average" is the difference in Avg % where the unpruned model's samples are given (`vanilla` may be `samples_b`),
    and the difference of the mean task scores where they are not.

    Raises:
        ValueError: the tables do not hold the same questions.
    """
    tables = [samples_a, samples_b] + ([] if vanilla is None else [vanilla])
    sums = tally_frame(*tables)  # (I, 2 or 3, T, 4)
    total, drawn = percent(sums.sum(0)), percent(resample(sums, draws, seed))  # (P, T), (draws, P, T)
    out = {}
    for t, task in enumerate(sorted(samples_a["task"].unique())):
        seen = int((sums[:, 0, t, COUNT] > 0).sum())
        out[str(task)] = difference(total[0, t] - total[1, t], drawn[:, 0, t] - drawn[:, 1, t], seen, level)
    if vanilla is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            total, drawn = 100 * total / total[2:], 100 * drawn / drawn[:, 2:]
    total, drawn = total.mean(-1), drawn.mean(-1)
    out["average"] = difference(total[0] - total[1], drawn[:, 0] - drawn[:, 1], len(sums), level)
    return out


def resample(sums: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Totals of tallies (I, P, T, 4) over images drawn with replacement -> (draws, P, T, 4).

    NaN for tasks of one image: all draws would be the same, and that is not certainty.
    """
    from scipy.sparse.csgraph import connected_components  # here and below: slow imports, not for every command

    asked = sums[..., COUNT].any(1)  # (I, T)
    shared = (asked.T.astype(np.int64) @ asked.astype(np.int64)) > 0
    count, family = connected_components(shared, directed=False)
    out = np.zeros((draws, *sums.shape[1:]))
    for f in range(count):
        part = sums[asked[:, family == f].any(1)][:, :, family == f]  # (i, P, t, 4)
        flat = part.reshape(len(part), -1)
        if len(part) == 1:
            out[:, :, family == f] = np.nan
            continue
        rows = np.concatenate([weights @ flat for weights in image_weights(len(part), draws, (seed, f))])
        out[:, :, family == f] = rows.reshape(draws, *part.shape[1:])
    return out


def image_weights(images: int, draws: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """How often each image is drawn: blocks (r, images) float64 whose rows sum to `images`, `draws` rows in all."""
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // max(images, 1))
    for start in range(0, draws, step):
        r = min(step, draws - start)
        drawn = rng.integers(0, images, (r, images), dtype=np.int64)
        drawn += np.arange(r)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=r * images).reshape(r, images).astype(np.float64)


def interval(drawn: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of draws (R,); NaN where no draw is finite."""
    kept = drawn[np.isfinite(drawn)]
    if not len(kept):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def difference(estimate: float, drawn: np.ndarray, images: int, level: float = 0.95) -> Difference:
    """A difference with the percentile interval of its draws (R,) and a p value.

    p is that of a t test with images - 1 degrees of freedom whose standard error is the draws' deviation: a share of
    draws could not fall below 1 / R, too coarse for a Holm correction over a whole table. It is never smaller than
    2^(1 - images), the least that a sign-flip test could give.
    """
    low, high = interval(drawn, level)
    error = float(np.nanstd(drawn)) if np.isfinite(drawn).any() else np.nan
    if not np.isfinite(estimate) or not np.isfinite(error):
        return Difference(float(estimate), low, high, np.nan, images)
    if error < 1e-12:
        p = 1.0 if abs(estimate) < 1e-12 else 0.0
    else:
        from scipy import stats

        p = float(2 * stats.t.sf(abs(estimate) / error, max(images - 1, 1)))
    return Difference(float(estimate), low, high, min(1.0, max(p, 2.0 ** (1 - images))), images)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test on the same yes/no questions: (Q,) bool, (Q,) bool.

    It treats questions as independent; `paired_difference` does not.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test  # slow import

    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    return float(min(1.0, test(table, exact=True).pvalue))


def holm(p: np.ndarray) -> np.ndarray:
    """p values (n,) after Holm's step-down correction over the finite ones; NaN stays NaN.

    The same as statsmodels' multipletests, which runs the garbage collector in every call: 0.3 s in a full process.
    """
    p = np.asarray(p, np.float64)
    out, order = np.full(p.shape, np.nan), np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.maximum.accumulate(steps).clip(max=1)
    return out
