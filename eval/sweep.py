"""A finished sweep in memory: the points below a folder, read back and aligned question by question."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from eval.failures import FAILED
from eval.records import METRICS, SAMPLES
from eval.scores import codes, percent, tally
from eval.statistics import resample

VANILLA = "vanilla"
KEYS = ["task", "doc_id"]
QUESTION = [*KEYS, "image_id", "pair_id", "weight"]


@dataclass(frozen=True)
class Point:
    """One finished point: a method at a budget."""

    folder: Path
    label: str  # method, with its overrides where there are some: acgr_tatcs (text=none)
    budget: int
    facts: dict[str, Any]  # metrics.json

    @property
    def group(self) -> tuple[str, str]:
        """Model and split: only points of one group are compared."""
        return str(self.facts["model"]), str(self.facts["split"])

    @property
    def method(self) -> str:
        """The method's name without its overrides."""
        return str(self.facts["method"])


@dataclass(frozen=True)
class Missing:
    """A point that has no result, and why."""

    folder: str
    reason: str
    kind: str = FAILED  # of eval.failures: `failed`, also where the record cannot be read, or `out of reach`


@dataclass(frozen=True)
class Sweep:
    """P points of one model and split on the union of their Q questions."""

    model: str
    split: str
    points: list[Point]  # the unpruned model first, then by label and falling budget
    questions: pd.DataFrame  # Q rows: task, doc_id, image_id, pair_id, weight
    score: np.ndarray  # (P, Q) float64 0..1; NaN: not asked; a failed sample counts 0; mean where seeds were merged
    shift: dict[str, np.ndarray]  # metric -> (P, Q) float32, NaN where it was not recorded
    sums: np.ndarray  # (I, P, T, 4) tallies, see `scores.tally`; mean where seeds were merged
    seeds: dict[int, np.ndarray] = field(default_factory=dict)  # place -> (S, T) task scores of its S seeds

    @cached_property
    def tasks(self) -> list[str]:
        """T task names, sorted."""
        return sorted(str(task) for task in self.questions["task"].unique())

    @cached_property
    def scores(self) -> np.ndarray:
        """(P, T) task scores in percent."""
        return percent(self.sums.sum(0))

    @cached_property
    def draws(self) -> np.ndarray:
        """(R, P, T) task scores of the bootstrap over images, the same draws for all points."""
        return percent(resample(self.sums))

    @cached_property
    def vanilla(self) -> int | None:
        """The unpruned model's place in `points`."""
        return next((i for i, point in enumerate(self.points) if point.method == VANILLA), None)

    @cached_property
    def asked(self) -> np.ndarray:
        """(P, Q) bool: the point was asked this question."""
        return ~np.isnan(self.score)

    def comparable(self, a: int, b: int | None) -> bool:
        """Both points exist and were asked the same questions."""
        return b is not None and bool((self.asked[a] == self.asked[b]).all())

    def relative(self, values: np.ndarray) -> np.ndarray:
        """Scores (..., P, T) in percent of the unpruned model's; NaN for points that were not asked the same."""
        if self.vanilla is None:
            return np.full_like(values, np.nan)
        same = np.array([self.comparable(i, self.vanilla) for i in range(len(self.points))])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = 100 * values / values[..., self.vanilla, :][..., None, :]
        return np.where(same[:, None], ratio, np.nan)

    def find(self, label: str, budget: int) -> int | None:
        """A point's place in `points`."""
        return next((i for i, p in enumerate(self.points) if (p.label, p.budget) == (label, budget)), None)

    def pruned(self) -> list[int]:
        """Places of all points but the unpruned model."""
        return [i for i, point in enumerate(self.points) if point.method != VANILLA]

    def shifted(self) -> list[int]:
        """Places of the points that keep fewer tokens than there are: at the full budget every shift is zero."""
        full = np.inf if self.vanilla is None else self.points[self.vanilla].budget
        return [i for i in self.pruned() if self.points[i].budget < full]


def read_sweeps(folder: str | Path) -> tuple[list[Sweep], list[Missing]]:
    """Every model and split below `folder`, and the points without a result or with one that cannot be read."""
    points, missing = find_points(Path(folder))
    sweeps = []
    for group in sorted({point.group for point in points}):
        sweep, unreadable = read_group(Path(folder), [point for point in points if point.group == group])
        missing += unreadable
        if sweep is not None:
            sweeps.append(sweep)
    return sweeps, sorted(missing, key=lambda point: point.folder)


def find_points(folder: Path) -> tuple[list[Point], list[Missing]]:
    """Finished points below `folder`, and what is there but not finished. Hidden folders hold unfinished work."""
    points, missing = [], []
    for file in sorted(folder.rglob(METRICS)):
        name = file.parent.relative_to(folder)
        if any(part.startswith((".", "_")) for part in name.parts):
            continue
        try:
            facts = json.loads(file.read_text())
            point = Point(file.parent, file.parent.parent.name, int(facts["budget"]), facts)
            if facts["status"] != "finished":
                missing.append(Missing(name.as_posix(), reason_of(facts), str(facts["status"])))
                continue
            point = Point(file.parent, label_of(point), point.budget, facts)
            _ = point.group
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(Missing(name.as_posix(), f"{METRICS} cannot be read: {type(error).__name__}: {error}"))
            continue
        points.append(point)
    return sorted(points, key=lambda p: (p.method != VANILLA, p.label, -p.budget)), missing


def reason_of(facts: dict[str, Any]) -> str:
    """Why a point has no result, in one line, as far as its record says."""
    words = str(facts.get("reason") or f"the run recorded status {facts['status']}")
    return words.strip().splitlines()[-1]


def label_of(point: Point) -> str:
    """The method with what was changed of its YAML, which the folder's name holds as a hash only."""
    changed = point.facts.get("overrides")
    if not changed:
        return point.method
    return f"{point.method} ({', '.join(f'{name}={plain(value)}' for name, value in sorted(changed.items()))})"


def plain(value: Any) -> str:
    """A hyper-parameter as it is given on the command line."""
    return json.dumps(value).strip('"')


def read_group(root: Path, points: list[Point]) -> tuple[Sweep | None, list[Missing]]:
    """Points of one model and split, aligned; a point whose samples cannot be read is left out and named."""
    tables, kept, missing, questions = [], [], [], None
    for point in points:
        try:
            table = read_samples(point)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
            name = point.folder.relative_to(root).as_posix()
            missing.append(Missing(name, f"{SAMPLES} cannot be read: {str(error).splitlines()[0]}"))
            continue
        asked = table[QUESTION]
        if questions is None or not asked[KEYS].equals(questions[KEYS]):
            questions = asked if questions is None else merge(questions, asked)
        else:
            table = table.drop(columns=QUESTION)  # same order: nothing to align later
        tables.append(table)
        kept.append(point)
    if questions is None:
        return None, missing
    order = questions.reset_index(drop=True).sort_values(KEYS, kind="stable")
    return aligned(kept, tables, questions, order), missing


def read_samples(point: Point) -> pd.DataFrame:
    """task, doc_id, image_id, pair_id, weight, score (float64, a failed sample 0), shift columns of one point."""
    file = point.folder / SAMPLES
    names = pq.read_schema(file).names
    shifts = [name for name in names if name.startswith("shift_") or name == "output_kl"]
    wanted = [*KEYS, "image_id", "score", *shifts, *({"pair_id", "weight"} & set(names))]
    table = pq.read_table(file, columns=wanted).to_pandas()
    if "pair_id" not in table:
        table["pair_id"] = None
    if "weight" not in table:
        table["weight"] = 1.0
    if table.duplicated(KEYS).any():
        raise ValueError("a question appears twice")
    table["score"] = table["score"].to_numpy(np.float64, na_value=0.0)
    return table[[*QUESTION, "score", *shifts]].astype(dict.fromkeys(shifts, "float32"))


def merge(questions: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """The union of two tables of questions; the first keeps its rows' places."""
    return pd.concat([questions, more]).drop_duplicates(KEYS, ignore_index=True)


def aligned(points: list[Point], tables: list[pd.DataFrame], questions: pd.DataFrame, order: pd.DataFrame) -> Sweep:
    """The sweep on `order`, the union of questions sorted by task and document."""
    index = pd.MultiIndex.from_frame(order[KEYS])
    places = order.index.to_numpy()  # of the sorted questions in the union
    columns = sorted({name for table in tables for name in table.columns} - set(QUESTION))
    values = {name: np.full((len(tables), len(order)), np.nan, np.float32) for name in columns if name != "score"}
    values["score"] = np.full((len(tables), len(order)), np.nan)
    for p, table in enumerate(tables):
        if "task" in table:
            rows = pd.MultiIndex.from_frame(table[KEYS]).get_indexer(index)
        else:
            rows = np.where(places < len(table), places, -1)
        for name in set(columns) & set(table.columns):
            values[name][p, rows >= 0] = table[name].to_numpy()[rows[rows >= 0]]
    score = values.pop("score")
    shift = {name.removeprefix("shift_"): values[name] for name in sorted(values)}
    model, split = points[0].group
    order = order.reset_index(drop=True)
    return Sweep(model, split, points, order, score, shift, tally(score, *codes(order)))


def kept_indices(points: Iterable[Point], patches: int) -> dict[str, np.ndarray]:
    """Kept patches of points at one budget as packed bit masks: label -> (n, ceil(patches / 8)) uint8.

    Points without kept patches (pooling, text only), or whose samples come in another order, are left out.
    """
    out: dict[str, np.ndarray] = {}
    first = None
    for point in points:
        table = pq.read_table(point.folder / SAMPLES, columns=[*KEYS, "index"])
        keys = table.select(KEYS)
        first = first or keys
        column = table["index"].combine_chunks()
        if not keys.equals(first) or column.null_count:
            continue
        flat, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
        rows = np.repeat(np.arange(len(column)), np.diff(ends))
        inside = (flat[ends[0] : ends[-1]] >= 0) & (flat[ends[0] : ends[-1]] < patches)
        mask = np.zeros((len(column), patches), bool)
        mask[rows[inside], flat[ends[0] : ends[-1]][inside]] = True
        if mask.any():
            out[point.label] = np.packbits(mask, axis=1)
    return out


def overlap(masks: dict[str, np.ndarray]) -> np.ndarray:
    """Mean over questions of |A and B| / |A or B| for every two of M methods' masks -> (M, M)."""
    names = list(masks)
    out = np.eye(len(names))
    for i, a in enumerate(names):
        for j in range(i):
            both = np.bitwise_count(masks[a] & masks[names[j]]).sum(1, dtype=np.int64)
            either = np.bitwise_count(masks[a] | masks[names[j]]).sum(1, dtype=np.int64)
            out[i, j] = out[j, i] = float(np.mean(both / np.maximum(either, 1)))
    return out
