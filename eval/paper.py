"""The paper's tables beside ours, with a verdict a cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eval.sweep import Point, Sweep
from eval.tables import AVERAGE

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper"
TABLES = {"llava15_7b": "results_llava15_7b.csv", "llava_next_7b": "results_llava_next_7b.csv"}
COLUMNS = {  # the paper's column -> our tasks that it can be compared with, official first
    "GQA": ("gqa", "mini_gqa"),
    "MME": ("mme", "mini_mme"),
    "POPE": ("pope", "mini_pope"),
    "SQA": ("scienceqa_img", "mini_sqa"),
    "TextVQA": ("textvqa_val", "mini_textvqa"),
}


def beside(sweep: Sweep, summary: pd.DataFrame, folder: Path = PAPER) -> pd.DataFrame:
    """A row a cell that both have: paper, ours, low, high, stderr, difference, verdict, why.

    `ours` is in the paper's unit where the task's own metric was recorded, else the task score in percent. A model
    that is not in the paper is shown beside the paper's LLaVA-1.5 table and never judged.
    """
    model = next((name for name in TABLES if sweep.model.startswith(name)), None)
    table = pd.read_csv(folder / TABLES[model or "llava15_7b"])
    rows = []
    for line in table.to_dict("records"):
        p = sweep.find(line["method"], line["budget"])
        if p is None:
            continue
        cells = summary[(summary["method"] == line["method"]) & (summary["budget"] == line["budget"])]
        for column in (*COLUMNS, "avg_percent"):
            task = our_task(sweep, column)
            found = cells[cells["task"] == task]
            if len(found):
                ours = ours_of(sweep.points[p], found.iloc[0], task, column)
                why = unlike(model, column, str(line["method"]), int(line["budget"]), sweep, task)
                why += our_f1(sweep.points[p]) if why.startswith("F1") else ""
                rows.append({
                    "model": sweep.model, "split": sweep.split, "method": line["method"], "budget": line["budget"],
                    "column": column, "task": task, "paper": line[column], **ours,
                    "difference": np.nan if task == "mini_mme" else ours["ours"] - line[column],  # other units
                    "verdict": "not comparable" if why else judge(line[column], ours), "why": why,
                })  # fmt: skip
    return pd.DataFrame(rows)


def our_task(sweep: Sweep, column: str) -> str | None:
    """The task of ours that stands for one of the paper's columns."""
    if column == "avg_percent":
        return AVERAGE
    return next((task for task in COLUMNS[column] if task in sweep.tasks), None)


def ours_of(point: Point, row: pd.Series, task: str | None, column: str) -> dict[str, float]:
    """Our value with its interval; MME's is scaled to its own unit, perception + cognition."""
    if column == "avg_percent":
        return {"ours": row["ratio"], **{name: row[f"ratio_{name}"] for name in ("low", "high", "stderr")}}
    scale = 1.0
    if task == "mme":
        metrics = point.facts["tasks"]["mme"]["metrics"]
        points = metrics.get("mme_perception_score", np.nan) + metrics.get("mme_cognition_score", np.nan)
        scale = points / row["score"] if row["score"] else np.nan
    return {"ours": scale * row["score"], **{name: scale * row[name] for name in ("low", "high", "stderr")}}


def unlike(model: str | None, column: str, method: str, budget: int, sweep: Sweep, task: str | None) -> str:
    """Why two cells must not be compared, or nothing."""
    if model is None:
        return f"another model ({sweep.model})"
    if column == "POPE" and (method == "vanilla" or budget >= 64 or model == "llava_next_7b"):
        return "F1 against accuracy" if model == "llava15_7b" or method == "vanilla" else "F1 or accuracy not stated"
    if column == "avg_percent":
        missing = [name for name, tasks in COLUMNS.items() if tasks[0] not in sweep.tasks]
        if missing or len(sweep.tasks) != len(COLUMNS):
            return "other tasks in the mean"
        return "its POPE ratio is accuracy over F1" if budget < 64 else ""
    return ""


def our_f1(point: Point) -> str:
    """POPE's F1 (%) beside the accuracy that stands as ours, where the task recorded it."""
    f1 = point.facts["tasks"].get("pope", {}).get("metrics", {}).get("pope_f1_score", np.nan)
    return f" (our F1 is {100 * f1:.1f})" if np.isfinite(f1) else ""


def judge(paper: float, ours: dict[str, float]) -> str:
    """Where our 95 % interval puts us against the paper's number, which comes without one."""
    if not np.isfinite([ours["low"], ours["high"]]).all():
        return "no interval"
    if ours["high"] < paper:
        return "below"
    return "above" if ours["low"] > paper else "within interval"
