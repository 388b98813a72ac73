"""report.md: the tables of a sweep (`tables` computes them) in words that a reader can follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eval.failures import OUT_OF_REACH
from eval.sweep import Missing, Sweep
from eval.tables import AVERAGE, KAPPA, OUTPUT, PEER, REFERENCE, SCOPES

LEVEL = 0.05
FEW = 30  # images; below that many, percentiles of a bootstrap are no intervals
TIE = 1e-9  # points of accuracy
CAPTIONS = {
    "ranking": "Accuracy by method and budget.",
    "accuracy_budget": "Accuracy against budget.",
    "shift_budget": "Distribution shift (kappa, a reconstruction) against budget.",
    "shift_accuracy_methods": "Shift against accuracy, a panel a method.",
    "shift_accuracy": "Shift against accuracy, a mark a method and budget.",
    "time_accuracy": "Time a question against accuracy.",
    "kept_tokens": "What the methods keep of one image, on the question where they disagree most.",
    "overlap": "How much of what two methods keep is the same.",
}


def document(sections: Sequence[str], missing: Sequence[Missing]) -> str:
    """The whole report; points without a result come last, those that broke apart from those that cannot be."""
    parts = ["# Report", "Intervals are 95 %, from a bootstrap over images; n counts questions."]
    parts += sections
    failed = [point for point in missing if point.kind != OUT_OF_REACH]
    parts += without_result("Failed points", "Everything above was computed without them.", failed)
    beyond = [point for point in missing if point.kind == OUT_OF_REACH]
    words = "The method cannot meet the budget on this model: nothing was run, and nothing failed."
    parts += without_result("Points out of reach", words, beyond)
    return "\n\n".join(part for part in parts if part) + "\n"


def without_result(name: str, words: str, points: Sequence[Missing]) -> list[str]:
    """A section that lists points with the reason each; nothing where there are none."""
    if not points:
        return []
    rows = [[f"`{point.folder}`", point.reason] for point in points]
    return [f"## {name} ({len(points)})", words, grid(["point", "reason"], rows)]


def section(sweep: Sweep, parts: dict[str, pd.DataFrame], pictures: Iterable[Path]) -> str:
    """One model and split."""
    summary = parts["summary"]
    out = [f"## {sweep.model}, {sweep.split}",
           f"{counted(len(sweep.points), 'point')}, {counted(len(sweep.questions), 'question')} on "
           f"{counted(len(sweep.sums), 'image')}, tasks: {', '.join(sweep.tasks)}."]  # fmt: skip
    if len(sweep.sums) < FEW:
        out.append(f"With fewer than {FEW} images, intervals and tests say little; of one image there are none.")
    out += in_short(parts)
    out += averages(summary, parts["tests"], sweep.vanilla is not None)
    out += paired(parts["tests"])
    out += seeds(parts["seeds"])
    out += hard(summary)
    out += kappas(parts["points"])
    out += correlations(parts["shift_correlation"])
    out += beside_paper(parts["paper"])
    out += by_task(sweep, summary)
    for path in pictures:
        caption = next(words for name, words in CAPTIONS.items() if path.stem.startswith(name))
        out.append(f"![{caption}]({path.as_posix()})\n\n*{caption}*")
    return "\n\n".join(out)


def counted(count: int, what: str) -> str:
    """3 images, 1 image."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def averages(summary: pd.DataFrame, tests: pd.DataFrame, relative: bool) -> list[str]:
    """Avg % of every method at every budget, with the verdict against the reference method."""
    rows = summary[summary["task"] == AVERAGE]
    value = ("ratio", "ratio_low", "ratio_high") if relative else ("score", "low", "high")
    name = (
        "Avg % (mean over tasks of score / unpruned score)" if relative else "Mean task score (%), no unpruned model"
    )
    out = [f"### {name}", methods_by_budgets(rows, value, marks(tests))]
    if not np.isfinite(rows[value[0]]).any():
        none = summary[(summary["method"] == "vanilla") & (summary["score"] == 0)]["task"]
        return [out[0], f"No ratio can be formed: the unpruned model scores 0 on {', '.join(none)}."]
    if marks(tests):
        reference = tests["reference"].iloc[0]
        out.append(
            f"Against {reference} at the same budget, paired over images, Holm-corrected over this table at {LEVEL}: "
            "**-** significantly below it, **+** significantly above it, **=** no significant difference."
        )
    return out


def marks(tests: pd.DataFrame) -> dict[tuple[str, int], str]:
    """The sign of each method and budget against the reference."""
    if not len(tests):
        return {}
    rows = tests[tests["task"] == AVERAGE]
    rows = rows[rows["p_holm"].notna()]
    signs = np.where(rows["p_holm"] >= LEVEL, "=", np.where(rows["difference"] > 0, "-", "+"))
    return {(m, int(b)): s for m, b, s in zip(rows["method"], rows["budget"], signs)}


def methods_by_budgets(
    rows: pd.DataFrame, value: Sequence[str], signs: dict[tuple[str, int], str], digits: int = 1
) -> str:
    """Methods down, budgets across, the method with the largest value at the smallest budget first."""
    budgets = sorted(rows["budget"].unique(), reverse=True)
    cells = {(r["method"], r["budget"]): r for r in rows.to_dict("records")}
    first = rows.sort_values("budget", kind="stable").groupby("method", sort=True).first()
    order = first.sort_values(["budget", value[0]], ascending=[False, False], kind="stable").index
    body = []
    for method in order:
        line = [method]
        for budget in budgets:
            cell = cells.get((method, budget))
            sign = signs.get((method, int(budget)), "")
            line.append(f"{spread(*(cell[v] for v in value), digits=digits)} {sign}".strip() if cell else "")
        body.append(line)
    return grid(["method", *map(str, budgets)], body)


def in_short(parts: dict[str, pd.DataFrame]) -> list[str]:
    """What a reader should take home, from the tables that follow."""
    points, signs, found = parts["points"], marks(parts["tests"]), parts["shift_correlation"]
    pruned = points[(points["method"] != "vanilla") & np.isfinite(points["accuracy"])]
    if pruned["method"].nunique() < 2:
        return []
    held = pruned[pruned["budget"] > 0]["budget"]  # `blank` alone stands at 0
    if held.empty:
        return []
    budget = int(held.min())
    least = pruned[pruned["budget"] == budget].sort_values("accuracy", ascending=False, kind="stable")
    top = least["accuracy"].max() - TIE
    first = [f"`{name}`" for name in least.loc[least["accuracy"] >= top, "method"]]
    who = " and ".join(first) if len(first) < 4 else f"{len(first)} methods"
    out = [f"At {budget} tokens {who} {'is' if len(first) == 1 else 'are'} first of {len(least)} methods: "
           f"{spread(*least.iloc[0][['accuracy', 'low', 'high']])} %."]  # fmt: skip
    for mine in least[least["method"] == REFERENCE].to_dict("records"):
        place = 1 + int((least["accuracy"] > mine["accuracy"] + TIE).sum())
        said = f" is number {place} with {spread(mine['accuracy'], mine['low'], mine['high'])} %" if place > 1 else ""
        count = [sum(s == x for (_, b), s in signs.items() if b == budget) for x in "-=+"]
        if sum(count):
            out.append(f"`{REFERENCE}`{said}: {count[0]} methods are significantly below it, {count[2]} above, "
                       f"{count[1]} not to be told apart.")  # fmt: skip
    return ["### In short", "\n".join(f"- {line}" for line in out + predictors(found))]


def predictors(table: pd.DataFrame) -> list[str]:
    """The metric of the features that goes with accuracy best, across and within methods, and what kappa does."""
    rows = table[(table["kind"] == "spearman") & (table["metric"] != OUTPUT)] if len(table) else table
    out = []
    for scope in SCOPES[:2]:
        known = rows[(rows["scope"] == scope) & np.isfinite(rows["value"])] if len(rows) else rows
        if not len(known):
            continue
        best = known.sort_values("value", kind="stable").iloc[0]
        line = f"Shift and accuracy {scope}: of the feature metrics, `{best['metric']}` orders best (Spearman "
        line += f"{spread(best['value'], best['low'], best['high'], 2)})"
        kappa = known[known["metric"] == KAPPA]
        if len(kappa):
            line += f"; kappa (`{KAPPA}`) has {spread(*kappa.iloc[0][['value', 'low', 'high']], 2)}"
        out.append(line + ".")
    return out


def paired(tests: pd.DataFrame) -> list[str]:
    """The reference against each method at the smallest budget, with McNemar's test on yes/no tasks."""
    if not len(tests):
        return []
    budget = tests["budget"].min()
    rows = tests[tests["budget"] == budget]
    mean, single = rows[rows["task"] == AVERAGE], rows[rows["mcnemar_p_holm"].notna()]
    if not np.isfinite(mean["difference"]).any():
        return []
    tasks = [task for task in sorted(single["task"].unique()) if "pope" in task or "mme" in task]
    p = {(r["method"], r["task"]): r["mcnemar_p_holm"] for r in single.to_dict("records")}
    body = [
        [r["method"], spread(r["difference"], r["low"], r["high"]), small(r["p_holm"]),
         *(small(p.get((r["method"], task), np.nan)) for task in tasks)]
        for r in mean.sort_values("difference", kind="stable").to_dict("records")
    ]  # fmt: skip
    reference = rows["reference"].iloc[0]
    return [f"### {reference} minus the others at {budget} tokens",
            "Points of Avg %, paired over images; p after Holm over all methods and budgets. McNemar's exact test "
            "takes single questions, right or wrong. All budgets and tasks: tests.csv.",
            grid(["method", "difference", "p (Holm)", *(f"McNemar, {task}" for task in tasks)], body)]  # fmt: skip


def small(p: float) -> str:
    """A p value in a cell."""
    return "" if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds(table: pd.DataFrame) -> list[str]:
    """The spread over seeds of methods that ran with several; everywhere else they count as their mean."""
    if not len(table):
        return []
    rows = table[table["task"] == AVERAGE]
    body = [
        [r["method"], str(r["budget"]), str(r["seeds"]), f"{r['mean']:.1f} ± {r['sd']:.1f}",
         f"{r['least']:.1f} to {r['most']:.1f}"] for r in rows.to_dict("records")
    ]  # fmt: skip
    return ["### Spread over seeds",
            "Mean task score (%) and standard deviation over seeds; in all other tables these runs are one method, "
            "their mean.", grid(["method", "budget", "seeds", "mean ± sd", "range"], body)]  # fmt: skip


def kappas(points: pd.DataFrame) -> list[str]:
    """kappa of every method at every budget."""
    if KAPPA not in points:
        return []
    rows = points[np.isfinite(points[KAPPA]) & (points["method"] != "vanilla")]
    if not len(rows):
        return []
    return ["### kappa (Gaussian KL, kept tokens to all, lower is better)",
            "A reconstruction: the paper does not print kappa's formula.",
            methods_by_budgets(rows, (KAPPA,), {}, digits=3)]  # fmt: skip


def by_task(sweep: Sweep, summary: pd.DataFrame) -> list[str]:
    """Task scores, a table a budget, folded."""
    out = ["### Task scores (%)"]
    for budget in sorted(summary["budget"].unique(), reverse=True):
        rows = summary[summary["budget"] == budget]
        n = [f"{task} (n = {rows.loc[rows['task'] == task, 'n'].max():,})" for task in sweep.tasks]
        body = []
        for method, part in rows.groupby("method", sort=True):
            cells = part.set_index("task")
            body.append([method, *(spread(*cells.loc[t, ["score", "low", "high"]]) for t in sweep.tasks)])
        out += [f"<details><summary>{budget} tokens</summary>", grid(["method", *n], body), "</details>"]
    return out


def hard(summary: pd.DataFrame) -> list[str]:
    """The hard subset."""
    full = summary.loc[summary["method"] == "vanilla", "budget"].max()
    rows = summary[(summary["task"] == AVERAGE) & (summary["hard_n"] > 0) & (summary["budget"] < full)]
    if not len(rows):
        return []
    counts = rows.groupby("budget")["hard_n"].max()
    size = ", ".join(f"{n:,} at {budget}" for budget, n in counts.sort_index(ascending=False).items())
    return ["### Hard subset (%)",
            f"Accuracy on the questions that the unpruned model gets right and `{PEER}` to the same budget gets "
            f"wrong (questions: {size}).",
            methods_by_budgets(rows[rows["method"] != PEER], ("hard",), {})]  # fmt: skip


def correlations(table: pd.DataFrame) -> list[str]:
    """Spearman of each metric at each scope that has any, the strongest first; all kinds are in the CSV."""
    rows = table[table["kind"] == "spearman"] if len(table) else table
    known = [s for s in SCOPES if len(rows) and rows.loc[rows["scope"] == s, "value"].notna().any()]
    if not known:
        return []
    cells = {(r["metric"], r["scope"]): r for r in rows.to_dict("records")}
    order = sorted(rows["metric"].unique(), key=lambda m: strength(cells[m, known[0]]["value"]))
    body = [
        [m, *(spread(*(cells[m, s][k] for k in ("value", "low", "high")), digits=2) for s in known)] for m in order
    ]
    n = [f"{s} (n = {int(rows.loc[rows['scope'] == s, 'n'].max()):,})" for s in known]
    return ["### Shift against accuracy (Spearman)",
            "Below zero: less shift goes with more accuracy. Intervals draw methods across points and within a "
            "method, images per sample. *Minus null*: after subtracting what a random subset of the same size has on "
            "the same question. Pearson and Kendall: shift_correlation.csv.",
            grid(["metric", *n], body)]  # fmt: skip


def strength(value: float) -> float:
    """Sorting key: the most negative correlation first, undefined last."""
    return value if np.isfinite(value) else np.inf


def beside_paper(table: pd.DataFrame) -> list[str]:
    """The paper's cells and ours; of another model only Avg %, since no cell of it can be judged."""
    if not len(table):
        return []
    foreign = table["why"].str.startswith("another model").all()
    rows = table[table["column"] == "avg_percent"] if foreign else table
    words = (
        f"The paper has no such model: {table['why'].iloc[0]}. Its Avg % on LLaVA-1.5-7B stands beside ours to "
        "compare the order of the methods, not the numbers; all cells are in paper.csv."
        if foreign
        else "*below* and *above*: our whole interval is below or above the paper's number."
    )
    body = [
        [r["method"], str(r["budget"]), r["column"], f"{r['paper']:g}", spread(r["ours"], r["low"], r["high"]),
         r["verdict"] + (f": {r['why']}" if r["why"] else "")]
        for r in rows.to_dict("records")
    ]  # fmt: skip
    return ["### The paper's table beside ours", words,
            grid(["method", "budget", "column", "paper", "ours", "verdict"], body)]  # fmt: skip


def spread(value: float, low: float = np.nan, high: float = np.nan, digits: int = 1) -> str:
    """`value [low, high]`, without what is not known."""
    if not np.isfinite(value):
        return ""
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{value:.{digits}f}{ends}"


def grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in body])
