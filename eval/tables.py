"""The numbers of a sweep's report, as frames: one function a table, rows in a fixed order; no words, no files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from eval.correlation import KINDS, Correlation, between_points, between_samples, within_units
from eval.scores import COUNT, codes
from eval.statistics import difference, holm, interval, mcnemar
from eval.sweep import Sweep

AVERAGE = "average"
REFERENCE, PEER, NULL = "acgr_tatcs", "downsample", "random"
KAPPA, OUTPUT = "gaussian_kl", "output_kl"  # the default shift of the features; the yardstick, which needs the model
RIGHT_FROM = 0.5  # a soft score counts as right from here on, in the hard subset and in McNemar's test
SCOPES = ("across points", "within method", "per sample", "per sample minus null")


def summary(sweep: Sweep) -> pd.DataFrame:
    """A row a point and task, and one of task "average" a point.

    score, low, high: task score in percent; "average": mean of the task scores. ratio, ratio_low, ratio_high: percent
    of the unpruned model's score, paired image by image; "average": the paper's Avg %. hard: accuracy in percent on
    the `hard_n` questions that the unpruned model gets right and `downsample` at the same budget gets wrong. All
    intervals are 95 %.
    """
    scores, draws = with_mean(sweep.scores), with_mean(sweep.draws)
    ratio, ratios = with_mean(sweep.relative(sweep.scores)), with_mean(sweep.relative(sweep.draws))
    count = sweep.sums[..., COUNT].sum(0)  # (P, T)
    same = {"model": sweep.model, "split": sweep.split}
    rows = []
    for p, point in enumerate(sweep.points):
        hard = hard_subset(sweep, p)
        for t, task in enumerate([*sweep.tasks, AVERAGE]):
            mine = hard if task == AVERAGE else hard & (sweep.questions["task"] == task).to_numpy()
            rows.append({
                **same, "method": point.label, "budget": point.budget, "task": task,
                "n": round(float(count[p].sum() if task == AVERAGE else count[p, t])),
                "failed": int(point.facts.get("failed") or 0) if task == AVERAGE else None,
                "score": scores[p, t], **spread("", draws[:, p, t]),
                "ratio": ratio[p, t], **spread("ratio_", ratios[:, p, t]),
                "hard": 100 * sweep.score[p, mine].mean() if mine.any() else np.nan, "hard_n": int(mine.sum()),
            })  # fmt: skip
    return pd.DataFrame(rows).astype({"failed": "Int64"})


def points(sweep: Sweep, summary: pd.DataFrame) -> pd.DataFrame:
    """A row a point: accuracy (Avg %; the mean score where there is no unpruned model), low, high, mean shifts."""
    rows = summary[summary["task"] == AVERAGE].reset_index(drop=True)
    value = ("score", "low", "high") if sweep.vanilla is None else ("ratio", "ratio_low", "ratio_high")
    table = rows[["model", "split", "method", "budget"]].assign(
        **{name: rows[column] for name, column in zip(("accuracy", "low", "high"), value)}
    )
    return table.assign(**{metric: mean_rows(shift) for metric, shift in sweep.shift.items()})


def mean_rows(values: np.ndarray) -> np.ndarray:
    """Means (P,) over the finite values of each row of (P, Q); NaN where there is none."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(1, dtype=np.float64)
    return np.divide(total, finite.sum(1), out=np.full(len(values), np.nan), where=finite.any(1))


def with_mean(values: np.ndarray) -> np.ndarray:
    """Values (..., P, T) with their mean over tasks as a last column, NaN where a task is missing."""
    return np.concatenate([values, values.mean(-1, keepdims=True)], -1)


def spread(prefix: str, drawn: np.ndarray) -> dict[str, float]:
    """Interval and standard error of draws (R,) as three columns."""
    low, high = interval(drawn)
    error = float(np.nanstd(drawn)) if np.isfinite(drawn).any() else np.nan
    return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}stderr": error}


def hard_subset(sweep: Sweep, p: int) -> np.ndarray:
    """(Q,) bool: the unpruned model right, `downsample` at the budget of point p wrong, and p asked."""
    peer = sweep.find(PEER, sweep.points[p].budget)
    if peer is None or sweep.vanilla is None:
        return np.zeros(len(sweep.questions), bool)
    return (sweep.score[sweep.vanilla] >= RIGHT_FROM) & (sweep.score[peer] < RIGHT_FROM) & sweep.asked[p]


def tests(sweep: Sweep) -> pd.DataFrame:
    """Reference method minus each other one at the same budget: paired difference, p, and p after Holm.

    The reference is acgr_tatcs; without it, the unpruned model (every budget is compared with it). "average" is in
    points of Avg % (of the mean score, without an unpruned model). The full budget is left out: nothing can differ.
    Holm's family is a task's column: all methods and budgets. mcnemar: exact test on the questions, where all of a
    task's scores are 0 or 1.
    """
    base = sweep.scores, sweep.draws
    average = base if sweep.vanilla is None else (sweep.relative(base[0]), sweep.relative(base[1]))
    values = np.concatenate([base[0], average[0].mean(-1, keepdims=True)], -1)
    drawn = np.concatenate([base[1], average[1].mean(-1, keepdims=True)], -1)
    rows = []
    for p in sweep.shifted():
        point = sweep.points[p]
        reference = sweep.find(REFERENCE, point.budget)
        if reference is None and not any(q.label == REFERENCE for q in sweep.points):
            reference = sweep.vanilla
        if reference in (None, p) or not sweep.comparable(p, reference):
            continue
        for t, task in enumerate([*sweep.tasks, AVERAGE]):
            seen = sweep.sums[:, p, :, COUNT].any(1) if task == AVERAGE else sweep.sums[:, p, t, COUNT] > 0
            gap = difference(
                values[reference, t] - values[p, t], drawn[:, reference, t] - drawn[:, p, t], int(seen.sum())
            )
            rows.append({
                "model": sweep.model, "split": sweep.split, "reference": sweep.points[reference].label,
                "method": point.label, "budget": point.budget, "task": task, "difference": gap.estimate,
                "low": gap.low, "high": gap.high, "p": gap.p, "images": gap.images,
                "mcnemar_p": np.nan if task == AVERAGE else yes_no(sweep, reference, p, task),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    if len(table):
        for name in ("p", "mcnemar_p"):
            by_task = table.groupby("task", sort=False)[name]
            table[f"{name}_holm"] = by_task.transform(lambda p: holm(p.to_numpy(float)))
    return table


def yes_no(sweep: Sweep, a: int, b: int, task: str) -> float:
    """McNemar's p on one task, NaN where scores are not all 0 or 1."""
    mine = (sweep.questions["task"] == task).to_numpy() & sweep.asked[a] & sweep.asked[b]
    pair = sweep.score[[a, b]][:, mine]
    return mcnemar(*(pair >= RIGHT_FROM)) if np.isin(pair, (0, 1)).all() else np.nan


def shift_correlation(sweep: Sweep) -> pd.DataFrame:
    """How each shift metric goes with accuracy. Points that keep every token are left out: their shift is zero.

    across points: a point's mean shift against its Avg % (mean score without an unpruned model); methods are drawn.
    within method: mean over methods of that correlation over their own budgets (3 or more); methods are drawn.
    per sample: shift against score over all samples of all points; images are drawn.
    per sample minus null: the same after subtracting, question by question, the shift and the score that a random
        subset of the same size has (the `random` point of that budget; several are averaged; points at budgets
        without one, and the random points themselves, are left out). What image, question and budget explain is gone;
        what stays is whether a choice that shifts less than a random one is also right more often than a random one.
    """
    chosen = sweep.shifted()
    label = np.array([sweep.points[p].label for p in chosen])
    accuracy = sweep.relative(sweep.scores) if sweep.vanilla is not None else sweep.scores
    accuracy = accuracy.mean(1)[chosen]
    image = codes(sweep.questions)[0]
    null, rows = null_points(sweep), []
    beyond = [p for p in chosen if p in null]
    y, above = sweep.score[chosen], less_null(sweep.score, beyond, null)
    for metric, shift in sweep.shift.items():
        mean = mean_rows(shift[chosen])
        x, less = shift[chosen], less_null(shift, beyond, null)
        ways: list[Callable[[str], Correlation]] = [
            lambda kind, x=mean: between_points(x, accuracy, label, kind),
            lambda kind, x=mean: within_units(x, accuracy, label, kind),
            lambda kind, x=x: between_samples(x.ravel(), y.ravel(), np.tile(image, len(x)), kind),
            lambda kind, x=less: between_samples(x.ravel(), above.ravel(), np.tile(image, len(x)), kind),
        ]
        for (scope, way), kind in product(zip(SCOPES, ways), KINDS):
            found = way(kind)._asdict()
            rows.append(
                {"model": sweep.model, "split": sweep.split, "metric": metric, "scope": scope, "kind": kind, **found}
            )
    return pd.DataFrame(rows)


def null_points(sweep: Sweep) -> dict[int, list[int]]:
    """For each pruned point that is not random itself, the random points of its budget."""
    random = [p for p in sweep.pruned() if sweep.points[p].method == NULL]
    out = {}
    for p in sweep.pruned():
        same = [r for r in random if sweep.points[r].budget == sweep.points[p].budget]
        if same and p not in random:
            out[p] = same
    return out


def less_null(values: np.ndarray, chosen: list[int], null: dict[int, list[int]]) -> np.ndarray:
    """Rows `chosen` of values (P, Q) minus the mean of their random points."""
    if not chosen:
        return np.empty((0, values.shape[1]))
    return np.stack([values[p] - values[null[p]].mean(0) for p in chosen])


def timings(sweep: Sweep) -> pd.DataFrame:
    """Milliseconds a question by stage, peak memory and visual tokens of each point: what differs from run to run.

    A resumed point's seconds are those of its last process, so they are shared among the questions that it answered.
    """
    rows = []
    for p, point in enumerate(sweep.points):
        n = max(int(sweep.asked[p].sum()), 1)
        answered = n * (1 - point.facts.get("resumed", 0)) or np.nan
        stages = {f"{stage}_ms": 1000 * s / answered for stage, s in (point.facts.get("seconds") or {}).items()}
        rows.append({
            "model": sweep.model, "split": sweep.split, "method": point.label, "budget": point.budget, "n": n,
            "visual_tokens": point.facts.get("visual_tokens"), **stages,
            "peak_memory_mb": point.facts.get("peak_memory_mb"), "hardware": short(point.facts.get("hardware")),
        })  # fmt: skip
    return pd.DataFrame(rows)


def short(value: Any) -> str:
    """A recorded fact in one cell."""
    return " ".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value or "")
