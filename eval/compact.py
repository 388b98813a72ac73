"""Tables of README.md and results/embedded/ablation.md, from a report's CSV files (report.md itself: `markdown`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eval.markdown import LEVEL, grid, marks, small, spread
from eval.tables import AVERAGE, KAPPA, REFERENCE


def methods_table(folder: Path) -> str:
    """Every method at every budget, the best at the smallest budget first; difference and kappa at the smallest.

    Budget 0 (`blank`) is the last column and the last row.
    """
    points, tests = pd.read_csv(folder / "points.csv"), pd.read_csv(folder / "tests.csv")
    signs, budgets = marks(tests), sorted(points["budget"].unique(), reverse=True)
    least = min((b for b in budgets if b > 0), default=0)
    cells = {(r["method"], r["budget"]): r for r in points.to_dict("records")}
    gaps = {r["method"]: r for r in tests.query("task == @AVERAGE and budget == @least").to_dict("records")}
    by_budget = points.assign(last=points["budget"] == 0).sort_values(
        ["last", "budget", "accuracy"], ascending=[True, True, False], kind="stable"
    )
    order = by_budget["method"]
    body = []
    for method in order.drop_duplicates():
        row = [f"`{method}`"]
        for budget in budgets:
            cell = cells.get((method, budget))
            sign = signs.get((method, int(budget)), "")
            row.append(f"{spread(cell['accuracy'], cell['low'], cell['high'])} {sign}".strip() if cell else "")
        gap, kappa = gaps.get(method), cells.get((method, least), {}).get(KAPPA, np.nan)
        row.append(spread(gap["difference"], gap["low"], gap["high"]) if gap else "")
        body.append([*row, spread(kappa, digits=3)])
    head = ["method", *(f"{b} tokens" for b in budgets), f"{REFERENCE} minus it, {least}", f"kappa, {least}"]
    return grid(head, body)


def ablation_table(folder: Path) -> str:
    """One row a changed switch of the reference method: Avg %, the default minus it, p after Holm, kappa."""
    points, tests = pd.read_csv(folder / "points.csv"), pd.read_csv(folder / "tests.csv")
    gaps = {r["method"]: r for r in tests[tests["task"] == AVERAGE].to_dict("records")}
    body = []
    for r in points[points["method"].str.startswith(REFERENCE)].to_dict("records"):
        gap = gaps.get(r["method"])
        change = r["method"].removeprefix(REFERENCE).strip(" ()") or "*default*"
        row = [change, spread(r["accuracy"], r["low"], r["high"])]
        row += [spread(gap["difference"], gap["low"], gap["high"]), small(gap["p_holm"])] if gap else ["", ""]
        body.append((r["accuracy"], [*row, spread(r.get(KAPPA, np.nan), digits=3)]))
    body.sort(key=lambda item: -item[0])
    sure = [f"`{row[0]}`" for _, row in body if row[3] and gaps[f"{REFERENCE} ({row[0]})"]["p_holm"] < LEVEL]
    words = f"Beyond chance (Holm, {LEVEL}): {', '.join(sure) or 'none'}; the other rows show no "
    words += "significant difference here, which is not the same as no effect: see their intervals.\n\n"
    return words + grid(["changed", "Avg %", "default minus it", "p (Holm)", "kappa"], [row for _, row in body])
