"""The figures of a report. Colour, marker and line style all tell methods apart, so that grey print serves too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from eval.sweep import VANILLA, Sweep
from eval.tables import REFERENCE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FBF", "#6B6B6B")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
OURS = {"color": "black", "marker": "*", "linestyle": "-", "linewidth": 2.4, "markersize": 11, "zorder": 5}
FULL = {"color": "0.35", "marker": "d", "linestyle": ":", "linewidth": 1.4, "markersize": 9, "zorder": 4}
LOOK = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "dcp-prune", "svg.fonttype": "none",
}  # fmt: skip


def style(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Line properties of each method, the same in every figure of a sweep; acgr_tatcs in black with stars."""
    labels = {sweep.points[p].label for p in sweep.pruned()} - {REFERENCE}
    out: dict[str, dict[str, Any]] = {REFERENCE: OURS, VANILLA: FULL}
    for i, label in enumerate(sorted(labels)):
        out[label] = {
            "color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.4,
            "linestyle": LINES[(i + i // len(COLOURS)) % len(LINES)], "markersize": 6, "zorder": 3,
        }  # fmt: skip
    return out


def draw_all(
    sweep: Sweep, points: pd.DataFrame, timing: pd.DataFrame, overlaps: pd.DataFrame, metric: str, folder: Path
) -> list[Path]:
    """Every figure that the sweep's points allow, as PNG (150 dpi) and SVG; the PNG's paths."""
    stages = [name for name in timing if name.endswith("_ms") and not name.startswith("load")]
    spent = timing[stages].sum(axis=1, min_count=1)
    points = points.assign(shift=points.get(metric, np.nan), ms=spent)
    pruned = points[points["method"] != VANILLA]
    figures: dict[str, Figure | None] = {}
    with mpl.rc_context(LOOK):
        if len(pruned):
            figures["accuracy_budget"] = accuracy_budget(sweep, points)
            figures["time_accuracy"] = time_accuracy(sweep, points)
        if pruned["shift"].notna().any():
            figures["shift_budget"] = shift_budget(sweep, pruned, metric)
            figures["shift_accuracy"] = shift_accuracy(sweep, pruned, metric)
        for budget, part in overlaps.groupby("budget"):
            figures[f"overlap_{budget}"] = overlap_matrix(sweep, part, int(budget))
        return [save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure is not None]


def save(figure: Figure, path: Path) -> Path:
    """Writes PNG and SVG without the date, so that equal records give equal files."""
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return path


def y_name(sweep: Sweep) -> str:
    """Label of the accuracy axis."""
    return "mean task score (%)" if sweep.vanilla is None else "Avg % of the unpruned model"


def note(sweep: Sweep) -> str:
    """What the numbers rest on."""
    images, questions = len(sweep.sums), len(sweep.questions)
    tasks = "task" if len(sweep.tasks) == 1 else "tasks"
    return f"{sweep.model}, {sweep.split}: n = {questions:,} questions, {images:,} images, {len(sweep.tasks)} {tasks}"


def canvas(title: str, size: tuple[float, float] = (8.2, 5.4)) -> tuple[Figure, Axes]:
    """An empty figure without a global state."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def legend(axes: Axes, order: list[str]) -> None:
    """Outside, on the right, in the order in which the eye meets the lines."""
    handles, labels = axes.get_legend_handles_labels()
    by = dict(zip(labels, handles))
    shown = [label for label in order if label in by]
    axes.legend(
        [by[s] for s in shown], shown, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, fontsize=9.5
    )


def budgets_axis(axes: Axes, budgets: Iterable[int]) -> None:
    """A logarithmic axis of budgets with its own ticks."""
    ticks = sorted(set(budgets))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(b) for b in ticks])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept (budget)")


def plain(axis: Axis) -> None:
    """Numbers such as 0.2 and 30 on a logarithmic axis, few enough not to touch."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def ranked(points: pd.DataFrame, by: str, ascending: bool) -> list[str]:
    """Methods by their value at their smallest budget, as the lines end on the left."""
    first = points.sort_values("budget").groupby("method", sort=False).first()
    return list(first.sort_values(by, ascending=ascending, kind="stable").index)


def accuracy_budget(sweep: Sweep, points: pd.DataFrame) -> Figure:
    """Accuracy against budget with 95 % bands."""
    figure, axes = canvas(f"Accuracy against budget\n{note(sweep)}; bands: 95 % bootstrap over images", (9.2, 6.2))
    pruned, full = points[points["method"] != VANILLA], points[points["method"] == VANILLA]
    look = style(sweep)
    for label, part in pruned.sort_values("budget").groupby("method"):
        axes.plot(part["budget"], part["accuracy"], label=label, **look[label])
        strength = 0.22 if label == REFERENCE else 0.5 / (4 + pruned["method"].nunique())
        axes.fill_between(part["budget"], part["low"], part["high"], color=look[label]["color"], alpha=strength, lw=0)
    for y in full["accuracy"]:
        axes.axhline(y, color="0.35", linewidth=1, linestyle=(0, (1, 1)), label="vanilla (no pruning)")
    budgets_axis(axes, pruned["budget"])
    axes.set_ylabel(y_name(sweep))
    legend(axes, ["vanilla (no pruning)", *ranked(pruned, "accuracy", False)])
    return figure


def shift_budget(sweep: Sweep, pruned: pd.DataFrame, metric: str) -> Figure:
    """Distribution shift against budget."""
    figure, axes = canvas(f"Distribution shift against budget\n{note(sweep)}", (9.2, 6.2))
    look = style(sweep)
    for label, part in pruned.sort_values("budget").groupby("method"):
        axes.plot(part["budget"], part["shift"], label=label, **look[label])
    budgets_axis(axes, pruned["budget"])
    if (pruned["shift"].dropna() > 0).all():
        axes.set_yscale("log")
        plain(axes.yaxis)
    axes.set_ylabel(metric_name(metric))
    legend(axes, ranked(pruned, "shift", False))
    return figure


def metric_name(metric: str) -> str:
    """Axis label of a metric."""
    return (
        "kappa: Gaussian KL, kept to all (nats a dimension)" if metric == "gaussian_kl" else metric.replace("_", " ")
    )


def shift_accuracy(sweep: Sweep, pruned: pd.DataFrame, metric: str) -> Figure:
    """Shift against accuracy, a mark a point, with the least-squares line and its correlations."""
    from scipy import stats

    good = pruned.dropna(subset=["shift", "accuracy"])
    x, y = good["shift"].to_numpy(float), good["accuracy"].to_numpy(float)
    log = bool(len(x)) and (x > 0).all()
    figure, axes = canvas("", (9.2, 6.2))
    look = style(sweep)
    largest = np.log2(max(good["budget"].max(), 2))
    for label, part in good.groupby("method"):
        props = look[label]
        size = (70 if label == REFERENCE else 30) + 130 * np.log2(part["budget"]) / largest
        along = part.sort_values("budget")
        axes.plot(along["shift"], along["accuracy"], color=props["color"], linewidth=0.8, alpha=0.45, zorder=2)
        axes.scatter(part["shift"], part["accuracy"], s=size, color=props["color"], marker=props["marker"],
                     alpha=0.85, linewidths=0.4, edgecolors="white", label=label, zorder=3)  # fmt: skip
    words = f"n = {len(x)} points"
    if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        u = np.log10(x) if log else x
        fit = stats.linregress(u, y)
        ends = np.linspace(u.min(), u.max(), 50)
        axes.plot(10**ends if log else ends, fit.intercept + fit.slope * ends, color="0.25", linestyle="--",
                  linewidth=1.4, label="least squares", zorder=2)  # fmt: skip
        rho = stats.spearmanr(x, y).statistic
        words += f"; Pearson {fit.rvalue:+.2f} {'with log shift' if log else ''}, Spearman {rho:+.2f}".replace(
            " ,", ","
        )
    title = f"Shift against accuracy: {words}\n{note(sweep)}; lines join budgets, larger marks: larger budgets"
    axes.set_title(title, loc="left", fontsize=11)
    if log:
        axes.set_xscale("log")
        plain(axes.xaxis)
    axes.set_xlabel(metric_name(metric))
    axes.set_ylabel(y_name(sweep))
    legend(axes, [*ranked(good, "accuracy", False), "least squares"])
    return figure


def time_accuracy(sweep: Sweep, points: pd.DataFrame) -> Figure | None:
    """Time a question against accuracy; a line joins a method's budgets."""
    good = points.dropna(subset=["ms", "accuracy"])
    if not len(good):
        return None
    figure, axes = canvas(f"Time against accuracy (all stages, without loading)\n{note(sweep)}", (9.2, 6.2))
    look = style(sweep)
    for label, part in good.sort_values("budget").groupby("method"):
        axes.plot(part["ms"], part["accuracy"], label=label, alpha=0.9, **look[label])
    axes.set_xscale("log")
    plain(axes.xaxis)
    axes.set_xlabel("time a question (ms)")
    axes.set_ylabel(y_name(sweep))
    legend(axes, ranked(good, "accuracy", False))
    return figure


def overlap_matrix(sweep: Sweep, table: pd.DataFrame, budget: int) -> Figure:
    """Mean IoU of kept patches of every two methods, with its number in each cell."""
    square = 100 * table.pivot(index="a", columns="b", values="iou")
    m = len(square)
    title = f"Overlap of kept patches at {budget} tokens: mean IoU (%)\nn = {int(table['n'].max()):,} questions"
    if sweep.vanilla is not None:
        patches = sweep.points[sweep.vanilla].budget
        title += f"; two random choices: {100 * budget / (2 * patches - budget):.0f} %"
    figure, axes = canvas(title, (2.6 + 0.46 * m, 1.6 + 0.42 * m))
    axes.grid(False)
    values = np.where(np.eye(m, dtype=bool), np.nan, square.to_numpy())
    most = max(float(np.nanmax(values)), 10.0)
    shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=most)
    axes.set_xticks(range(m), square.columns, rotation=90)
    axes.set_yticks(range(m), square.index)
    for i, j in np.argwhere(np.isfinite(values)):
        colour = "black" if values[i, j] > 0.6 * most else "white"
        axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="IoU (%)")
    return figure
