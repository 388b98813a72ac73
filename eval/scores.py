"""From answers to task scores, and from task scores to the paper's Avg %.

A task's score is a percentage: 100 * mean(score), or, for questions that come in pairs (MME), 50 * (accuracy +
accuracy_plus), where accuracy_plus counts the pairs with every question right. Questions may have weights: those of
MME make its score the mean over categories, which is the benchmark's own total (perception + cognition) in percent of
the most that can be had; a ratio of two such scores is the ratio of the totals. Everything a score needs is summed
image by image first (`tally`), so that a bootstrap over images never touches the questions again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

RIGHT, COUNT, BOTH, PAIRS = range(4)  # last axis of a tally


def task_score(samples: pd.DataFrame) -> float:
    """Score in percent of one task's rows (`score` 0..1, `image_id`, `pair_id` where there are pairs).

    A failed sample is a wrong answer. NaN where there are no rows.
    """
    return float(percent(tally_frame(samples.assign(task="")).sum(0))[0, 0])


def task_scores(samples: pd.DataFrame) -> dict[str, float]:
    """`task_score` of every task in `samples`."""
    return {str(task): task_score(rows) for task, rows in samples.groupby("task", sort=True)}


def ratios(scores: Mapping[str, float], vanilla: Mapping[str, float]) -> dict[str, float]:
    """Score over the unpruned model's score, task by task; NaN where that is zero.

    Raises:
        KeyError: a task that the unpruned model was not asked.
    """
    return {task: score / vanilla[task] if vanilla[task] else float("nan") for task, score in scores.items()}


def average_percent(scores: Mapping[str, float], vanilla: Mapping[str, float]) -> float:
    """The paper's Avg %: 100 * the mean over tasks of score / vanilla score."""
    return 100 * float(np.mean(list(ratios(scores, vanilla).values())))


def percent(totals: np.ndarray) -> np.ndarray:
    """Scores in percent (...) of summed tallies (..., 4); NaN where nothing was asked."""
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = totals[..., RIGHT] / totals[..., COUNT]
        plus = totals[..., BOTH] / totals[..., PAIRS]
    return 100 * np.where(totals[..., PAIRS] > 0, (accuracy + plus) / 2, accuracy)


def tally(
    score: np.ndarray, image: np.ndarray, task: np.ndarray, pair: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """What scores are made of, summed per image.

    Args:
        score: (P, Q) scores 0..1 of P points on Q questions, NaN where a point was not asked.
        image: (Q,) image number, 0..I-1.
        task: (Q,) task number, 0..T-1.
        pair: (Q,) pair number, 0.. ; -1 for a question without a partner. A pair lies in one image and one task.
        weight: (Q,) weights of mean 1 over a task; equal ones in a pair. None: all alike.

    Returns:
        (I, P, T, 4) float64: right answers, questions, pairs with all right, pairs.
    """
    images, tasks = int(image.max(initial=-1)) + 1, int(task.max(initial=-1)) + 1
    cell = image * tasks + task
    paired = pair >= 0
    at = np.zeros(int(pair.max(initial=-1)) + 1, np.int64)
    at[pair[paired]] = cell[paired]
    weight = np.ones(len(image)) if weight is None else weight
    weight_of_pair = np.zeros(len(at))
    weight_of_pair[pair[paired]] = weight[paired]
    out = np.zeros((images, len(score), tasks, 4))
    for p, row in enumerate(score):
        asked, right = ~np.isnan(row), np.nan_to_num(row)
        parts = [(cell, weight * right), (cell, weight * asked)]
        whole = np.bincount(pair[paired], asked[paired], len(at)) > 0
        wrong = np.bincount(pair[paired], (asked & (row < 1))[paired], len(at)) > 0
        parts += [(at, weight_of_pair * (whole & ~wrong)), (at, weight_of_pair * whole)]
        for column, (where, amount) in enumerate(parts):
            out[:, p, :, column] = np.bincount(where, amount, images * tasks).reshape(images, tasks)
    return out


def tally_frame(*tables: pd.DataFrame) -> np.ndarray:
    """`tally` (I, P, T, 4) of P tables with the same questions: columns task, image_id, score, maybe pair_id, doc_id.

    Rows are matched by task and `doc_id`, or by position where there is no `doc_id`; images and tasks are numbered
    in sorted order.

    Raises:
        ValueError: the tables do not hold the same questions.
    """
    first = tables[0].reset_index(drop=True)
    score = [clean(first["score"])]
    if "doc_id" in first and len(tables) > 1:
        keys = pd.MultiIndex.from_frame(first[["task", "doc_id"]])
        for table in tables[1:]:
            rows = pd.MultiIndex.from_frame(table[["task", "doc_id"]]).get_indexer(keys)
            if len(table) != len(first) or (rows < 0).any():
                raise ValueError("the samples to compare do not hold the same questions")
            score.append(clean(table["score"])[rows])
    elif any(len(table) != len(first) for table in tables):
        raise ValueError("the samples to compare do not hold the same questions")
    else:
        score += [clean(table["score"]) for table in tables[1:]]
    return tally(np.stack(score), *codes(first))


def codes(questions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, task, pair numbers and weights (Q,) of questions: columns image_id, task, maybe pair_id and weight."""
    image = pd.factorize(questions["image_id"], sort=True)[0]
    task = pd.factorize(questions["task"], sort=True)[0]
    weight = questions["weight"].to_numpy(np.float64) if "weight" in questions else np.ones(len(questions))
    if "pair_id" not in questions or questions["pair_id"].isna().all():
        return image, task, np.full(len(questions), -1), weight
    name = pd.factorize(questions["pair_id"])[0]  # -1 where there is none
    whole = pd.factorize((name.astype(np.int64) * (task.max() + 1) + task) * (image.max() + 1) + image)[0]
    return image, task, np.where(name < 0, -1, whole), weight


def clean(score: pd.Series) -> np.ndarray:
    """Scores as float64, failed samples (null) as wrong answers."""
    return score.to_numpy(np.float64, na_value=0.0)
