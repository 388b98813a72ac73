"""Which image a sweep's report shows with all methods' kept tokens (`pictures` draws it); embedded tasks only."""

from __future__ import annotations

import io
from collections import Counter
from math import isqrt
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from eval.pictures import method_sheet
from eval.records import SAMPLES
from eval.settings import TASKS
from eval.sweep import KEYS, Point, Sweep
from eval.tables import REFERENCE, RIGHT_FROM

DATA = TASKS / "data"


def draw_sheet(sweep: Sweep, path: Path, data: Path = DATA) -> bool:
    """Draws the question on which the methods disagree most, at the smallest budget that most methods have.

    Returns:
        False where there is nothing to draw: an image that is not at hand, no unpruned model, one method only.
    """
    images = data / sweep.split.partition("-first")[0] / "images.parquet"
    chosen, q = most_disputed(sweep)
    if sweep.vanilla is None or len(chosen) < 2 or not images.is_file():
        return False
    side = isqrt(sweep.points[sweep.vanilla].budget)
    asked = sweep.questions.iloc[q]
    image = read_image(images, str(asked["image_id"]))
    if image is None or side**2 != sweep.points[sweep.vanilla].budget:
        return False
    kept, words = {}, {}
    for p in chosen:
        row = read_row(sweep.points[p], asked["task"], int(asked["doc_id"]))
        verdict = "right" if (row["score"] or 0) >= RIGHT_FROM else "wrong"
        kept[f"{sweep.points[p].label}: {verdict}"] = row["index"] or []
        words = row
    title = (
        f"{sweep.points[chosen[0]].budget} of {side**2} tokens. {words['question']}  (expected: {words['target']})"
    )
    method_sheet(image, kept, path, (side, side), title)
    return True


def most_disputed(sweep: Sweep) -> tuple[list[int], int]:
    """Points of one budget, the reference first, and the first question with the largest variance of their scores."""
    budgets = Counter(sweep.points[p].budget for p in sweep.pruned())
    if not budgets:
        return [], 0
    budget = min(b for b, n in budgets.items() if 2 * n >= max(budgets.values()))
    chosen = [p for p in sweep.pruned() if sweep.points[p].budget == budget]
    chosen.sort(key=lambda p: sweep.points[p].label != REFERENCE)  # ours first, the others by name
    return chosen, int(np.nan_to_num(sweep.score[chosen].var(0), nan=-1.0).argmax())


def read_image(file: Path, name: str) -> Image.Image | None:
    """One image of a split, or None."""
    names = [str(value) for value in pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()]
    if name not in names:
        return None
    row = pq.read_table(file, columns=["image"]).slice(names.index(name), 1).to_pylist()[0]
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def read_row(point: Point, task: str, doc_id: int) -> dict:
    """The question, target, kept patches and score of one sample."""
    filters = [(KEYS[0], "=", task), (KEYS[1], "=", doc_id)]
    columns = ["question", "target", "index", "score"]
    return pq.read_table(point.folder / SAMPLES, columns=columns, filters=filters).to_pylist()[0]
