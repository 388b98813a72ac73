"""Points that differ in their seed only, taken together: the mean over seeds as one point, the spread beside it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd

from eval.scores import percent
from eval.sweep import Point, Sweep, label_of


def merge_seeds(sweep: Sweep) -> Sweep:
    """One point for all seeds of a method at a budget.

    Tallies are linear in the runs, so the merged score is the mean of the seeds' scores, and its bootstrap interval
    that of this mean over images; what another seed would have given is in `seed_table`. The kept patches shown are
    those of the first seed.
    """
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for p, point in enumerate(sweep.points):
        groups[seedless(point).label, point.budget].append(p)
    if len(groups) == len(sweep.points):
        return sweep
    scores = percent(sweep.sums.sum(0))  # (P, T)
    return replace(
        sweep,
        points=[merged([sweep.points[p] for p in places]) for places in groups.values()],
        score=mean(sweep.score, groups.values()),
        shift={name: mean(values, groups.values()) for name, values in sweep.shift.items()},
        sums=mean(sweep.sums.swapaxes(0, 1), groups.values()).swapaxes(0, 1),
        seeds={place: scores[same] for place, same in enumerate(groups.values()) if len(same) > 1},
    )


def seedless(point: Point) -> Point:
    """The point as if it had the default seed."""
    changed = {name: value for name, value in (point.facts.get("overrides") or {}).items() if name != "seed"}
    bare = replace(point, facts=point.facts | {"overrides": changed})
    return replace(bare, label=label_of(bare))


def merged(points: list[Point]) -> Point:
    """The first point in the name of all."""
    if len(points) == 1:
        return points[0]
    first = seedless(points[0])
    return replace(first, facts=first.facts | {"failed": sum(int(p.facts.get("failed") or 0) for p in points)})


def mean(values: np.ndarray, groups: object) -> np.ndarray:
    """Rows (P, ...) averaged over each group of places."""
    return np.stack([values[places].mean(0) for places in groups])  # type: ignore[attr-defined]


def seed_table(sweep: Sweep) -> pd.DataFrame:
    """A row a merged point and task, and "average" (the mean of the task scores): mean, deviation, least, most."""
    rows = []
    for place, scores in sweep.seeds.items():
        point = sweep.points[place]
        values = np.concatenate([scores, scores.mean(1, keepdims=True)], 1)
        for task, column in zip([*sweep.tasks, "average"], values.T):
            rows.append({
                "model": sweep.model, "split": sweep.split, "method": point.label, "budget": point.budget,
                "task": task, "seeds": len(column), "mean": column.mean(), "sd": column.std(ddof=1),
                "least": column.min(), "most": column.max(),
            })  # fmt: skip
    return pd.DataFrame(rows)
