"""The charts of a report. Colour, marker and line style all tell methods apart, so that grey print serves too."""

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
from scipy import stats
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from eval.correlation import between_points, within_units
from eval.markdown import counted
from eval.panels import budget_marks, is_crowded, name_marks, ranking, small_multiples, without_full
from eval.sweep import VANILLA, Sweep
from eval.tables import KAPPA, REFERENCE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FBF", "#6B6B6B")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FEW = 3  # budgets that get an overlap matrix each
BUDGET = "visual tokens kept (budget)"
SHARED = ("load", "image processing", "tower", "shift", "lmms-eval")  # stages that the method does not decide alone
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
    stages = [name for name in timing if name.endswith("_ms") and not name.startswith(SHARED)]
    spent = timing[stages].sum(axis=1, min_count=1)
    points = points.assign(shift=points.get(metric, np.nan), ms=spent)
    pruned, moved = points[points["method"] != VANILLA], without_full(points)
    budgeted = pruned[pruned["budget"] > 0]  # no token at all has no place on a logarithmic axis
    figures: dict[str, Figure | None] = {}
    with mpl.rc_context(LOOK):
        if len(moved):
            title = f"Accuracy by method and budget\n{note(sweep)}; bars: 95 % interval at its smallest budget"
            figures["ranking"] = ranking(moved, ranked(moved, "accuracy", False), y_name(sweep), title)
        lines = not is_crowded(moved) or moved["budget"].nunique() > 1  # else panels would hold a dot each
        if len(budgeted) and lines:
            figures["accuracy_budget"] = accuracy_budget(sweep, budgeted, points)
        if moved["shift"].notna().any():
            figures["shift_accuracy"] = shift_accuracy(sweep, moved, metric)
            if lines:
                figures["shift_budget"] = shift_budget(sweep, moved, metric)
            if lines and is_crowded(moved):
                figures["shift_accuracy_methods"] = shift_accuracy_methods(sweep, moved, metric)
        if len(pruned) and lines:
            figures["time_accuracy"] = time_accuracy(sweep, points)
        budgets = sorted(overlaps["budget"].unique())
        for budget in budgets[:1] if is_crowded(moved) or len(budgets) > FEW else budgets:  # others: overlap.csv
            figures[f"overlap_{budget}"] = overlap_matrix(sweep, overlaps[overlaps["budget"] == budget], int(budget))
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
    sizes = {"question": len(sweep.questions), "image": len(sweep.sums), "task": len(sweep.tasks)}
    return f"{sweep.model}, {sweep.split}: n = {', '.join(counted(n, what) for what, n in sizes.items())}"


def canvas(title: str, size: tuple[float, float] = (9.2, 6.2)) -> tuple[Figure, Axes]:
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


def budgets_axis(axes: Axes, budgets: Iterable[int], apart: float = 1.0) -> None:
    """A logarithmic axis of budgets with its own ticks, each at least `apart` times the one before."""
    ticks: list[int] = []
    for budget in sorted(set(budgets)):
        if not ticks or budget >= apart * ticks[-1]:
            ticks.append(int(budget))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(b) for b in ticks])
    axes.minorticks_off()


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


def accuracy_budget(sweep: Sweep, pruned: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """Accuracy against budget with 95 % bands; a panel a method where there are many."""
    title = f"Accuracy against budget\n{note(sweep)}; bands: 95 % bootstrap over images"
    full = points[points["method"] == VANILLA]
    order = ranked(pruned, "accuracy", False)
    if is_crowded(pruned):
        figure = small_multiples(pruned, order, "budget", "accuracy", (BUDGET, y_name(sweep)), title)
        budgets_axis(figure.axes[0], pruned["budget"], 1.9)
        return figure
    figure, axes = canvas(title)
    look = style(sweep)
    for label, part in pruned.sort_values("budget").groupby("method"):
        axes.plot(part["budget"], part["accuracy"], label=label, **look[label])
        strength = 0.22 if label == REFERENCE else 0.5 / (4 + pruned["method"].nunique())
        axes.fill_between(part["budget"], part["low"], part["high"], color=look[label]["color"], alpha=strength, lw=0)
    for y in full["accuracy"]:
        axes.axhline(y, color="0.35", linewidth=1, linestyle=(0, (1, 1)), label="vanilla (no pruning)")
    budgets_axis(axes, pruned["budget"], 1.1)
    axes.set_xlabel(BUDGET)
    axes.set_ylabel(y_name(sweep))
    legend(axes, ["vanilla (no pruning)", *order])
    return figure


def shift_budget(sweep: Sweep, pruned: pd.DataFrame, metric: str) -> Figure:
    """Distribution shift against budget; a panel a method where there are many."""
    title = f"Distribution shift against budget\n{note(sweep)}"
    pruned = pruned.dropna(subset=["shift"])
    order = ranked(pruned, "shift", False)
    if is_crowded(pruned):
        figure = small_multiples(pruned, order, "budget", "shift", (BUDGET, metric_name(metric)), title)
        axes = figure.axes[0]
    else:
        figure, axes = canvas(title)
        look = style(sweep)
        for label, part in pruned.sort_values("budget").groupby("method"):
            axes.plot(part["budget"], part["shift"], label=label, **look[label])
        axes.set_xlabel(BUDGET)
        axes.set_ylabel(metric_name(metric))
        legend(axes, order)
    budgets_axis(axes, pruned["budget"], 1.9 if is_crowded(pruned) else 1.1)
    if (pruned["shift"] > 0).all():
        axes.set_yscale("log")
        plain(axes.yaxis)
    return figure


def metric_name(metric: str) -> str:
    """Axis label of a metric."""
    kappa = "kappa (reconstruction): Gaussian KL, kept to all (nats a dimension)"
    return kappa if metric == KAPPA else metric.replace("_", " ")


def shift_accuracy(sweep: Sweep, pruned: pd.DataFrame, metric: str) -> Figure:
    """Shift against accuracy, a mark a point, lines along each method's budgets, with the least-squares line.

    The mark tells the method apart; with many methods it tells the budget.
    """
    good = pruned.dropna(subset=["shift", "accuracy"])
    x, y = good["shift"].to_numpy(float), good["accuracy"].to_numpy(float)
    log = bool(len(x)) and (x > 0).all()
    figure, axes = canvas("")
    order = marked_by_budget(axes, good) if is_crowded(good) else marked_by_method(sweep, axes, good)
    words = f"n = {len(x)} points"
    if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        u = np.log10(x) if log else x
        fit = stats.linregress(u, y)
        ends = np.linspace(u.min(), u.max(), 50)
        axes.plot(10**ends if log else ends, fit.intercept + fit.slope * ends, color="0.25", linestyle="--",
                  linewidth=1.4, label="least squares", zorder=2)  # fmt: skip
        across = between_points(x, y, good["method"].to_numpy(), "spearman", draws=1).value
        within = within_units(x, y, good["method"].to_numpy(), "spearman", draws=1).value
        words += f"; Spearman over all {across:+.2f}"
        words += f", within a method {within:+.2f} (mean)" if np.isfinite(within) else ""
        words += f"; Pearson{' with log shift' if log else ''} {fit.rvalue:+.2f}"
    axes.set_title(f"Shift against accuracy: {words}\n{note(sweep)}", loc="left", fontsize=11)
    if log:
        axes.set_xscale("log")
        plain(axes.xaxis)
    axes.set_xlabel(metric_name(metric))
    axes.set_ylabel(y_name(sweep))
    legend(axes, [*order, "least squares"])
    if is_crowded(good):
        name_marks(axes, good[good["budget"] == good["budget"].min()])
    return figure


def marked_by_method(sweep: Sweep, axes: Axes, good: pd.DataFrame) -> list[str]:
    """A colour and mark a method, the larger the larger the budget; the legend's order."""
    look, largest = style(sweep), np.log2(max(good["budget"].max(), 2))
    for label, part in good.sort_values("budget").groupby("method"):
        props = look[label]
        size = (70 if label == REFERENCE else 30) + 130 * np.log2(part["budget"]) / largest
        axes.plot(part["shift"], part["accuracy"], color=props["color"], linewidth=0.8, alpha=0.45, zorder=2)
        axes.scatter(part["shift"], part["accuracy"], s=size, color=props["color"], marker=props["marker"],
                     alpha=0.85, linewidths=0.4, edgecolors="white", label=label, zorder=3)  # fmt: skip
    return ranked(good, "accuracy", False)


def marked_by_budget(axes: Axes, good: pd.DataFrame) -> list[str]:
    """A mark a budget, a pale line a method, the reference method's in black; the legend's order."""
    for label, part in good.sort_values("budget").groupby("method"):
        ours = label == REFERENCE
        axes.plot(part["shift"], part["accuracy"], color="black" if ours else "0.75", linewidth=2 if ours else 0.8,
                  label=label if ours else "a method's budgets", zorder=3 if ours else 1)  # fmt: skip
    marks = budget_marks(good["budget"])
    for budget, (marker, face) in marks.items():
        part = good[good["budget"] == budget]
        axes.scatter(part["shift"], part["accuracy"], s=36, marker=marker, facecolor=face, edgecolor="black",
                     linewidths=0.6, label=f"{budget} tokens", zorder=4)  # fmt: skip
    return [*(f"{budget} tokens" for budget in sorted(marks, reverse=True)), REFERENCE, "a method's budgets"]


def shift_accuracy_methods(sweep: Sweep, pruned: pd.DataFrame, metric: str) -> Figure:
    """Shift against accuracy, a panel a method."""
    good = pruned.dropna(subset=["shift", "accuracy"])
    title = f"Shift against accuracy, method by method\n{note(sweep)}; a line joins a method's budgets"
    names = metric_name(metric), y_name(sweep)
    figure = small_multiples(good, ranked(good, "accuracy", False), "shift", "accuracy", names, title)
    if (good["shift"] > 0).all():
        figure.axes[0].set_xscale("log")
        plain(figure.axes[0].xaxis)
    return figure


def time_accuracy(sweep: Sweep, points: pd.DataFrame) -> Figure | None:
    """Time a question against accuracy; a line joins a method's budgets. A panel a method where there are many."""
    good = points.dropna(subset=["ms", "accuracy"])
    if not len(good):
        return None
    title = f"Time against accuracy: selection, projector, prefill and decoding\n{note(sweep)}; without the tower: \
points share its pass, methods inside it run a part anew"
    names, order = ("time a question (ms)", y_name(sweep)), ranked(good, "accuracy", False)
    if is_crowded(good):
        order = [label for label in order if label != VANILLA]
        figure = small_multiples(good, order, "ms", "accuracy", names, title)
        axes = figure.axes[0]
    else:
        figure, axes = canvas(title)
        look = style(sweep)
        for label, part in good.sort_values("budget").groupby("method"):
            axes.plot(part["ms"], part["accuracy"], label=label, alpha=0.9, **look[label])
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        legend(axes, order)
    axes.set_xscale("log")
    plain(axes.xaxis)
    return figure


def overlap_matrix(sweep: Sweep, table: pd.DataFrame, budget: int) -> Figure:
    """Mean IoU of kept patches of every two methods, with its number in each cell."""
    square = 100 * table.pivot(index="a", columns="b", values="iou")
    order = alike_together(square.to_numpy())
    square, m = square.iloc[order, order], len(square)
    title = f"Overlap of kept patches at {budget} tokens: mean IoU (%)\nn = {int(table['n'].max()):,} questions"
    if sweep.vanilla is not None:
        patches = sweep.points[sweep.vanilla].budget
        title += f"; two random choices: {100 * budget / (2 * patches - budget):.0f} %"
    room = 0.085 * max(0, max(map(len, square.index)) - 13)  # inches; a method with its overrides has a long name
    figure, axes = canvas(title, (2.6 + room + 0.46 * m, 1.6 + room + 0.42 * m))
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


def alike_together(square: np.ndarray) -> np.ndarray:
    """An order (M,) of methods that puts those with much overlap (M, M, percent) side by side."""
    if len(square) < 3:
        return np.arange(len(square))
    apart = 100 - (square + square.T) / 2
    np.fill_diagonal(apart, 0)
    return leaves_list(linkage(squareform(apart, checks=False), "average", optimal_ordering=True))
