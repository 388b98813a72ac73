"""What `plots` draws instead of lines for many methods: a ranking, and small multiples with one panel a method.

A line chart of more than a handful of methods cannot be read, so beyond `MANY` the report draws these instead of
lines with a legend. All of them work in grey: emphasis is by line width and darkness, budgets by the mark's shape.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from eval.sweep import VANILLA
from eval.tables import REFERENCE

MANY = 8  # methods that one line chart can hold
MINE, PALE = "#0072B2", "0.82"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
COLUMNS = 5


def is_crowded(points: pd.DataFrame) -> bool:
    """Whether there are too many methods for lines with a legend."""
    return points["method"].nunique() > MANY


def budget_marks(budgets: pd.Series) -> dict[int, tuple[str, str]]:
    """Marker and face colour of each budget: black for the smallest, the lighter the larger."""
    ordered = sorted({int(b) for b in budgets})
    greys = np.linspace(0, 0.95, len(ordered)) if len(ordered) > 1 else [0.0]
    return {b: (MARKS[i % len(MARKS)], f"{g:.3f}") for i, (b, g) in enumerate(zip(ordered, greys))}


def ranking(points: pd.DataFrame, order: list[str], x_name: str, title: str) -> Figure:
    """One row a method, the best at the smallest budget on top; the interval is that of its own smallest budget."""
    figure = Figure(figsize=(8.6, 1.8 + 0.27 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    marks = budget_marks(points["budget"])
    place = {method: -row for row, method in enumerate(order)}
    for budget in sorted(marks, reverse=True):  # the smallest last, on top
        part = points[points["budget"] == budget]
        y = part["method"].map(place)
        marker, face = marks[budget]
        last = part["method"].map(points.groupby("method")["budget"].min()) == budget
        axes.hlines(y[last], part["low"][last], part["high"][last], color="black", linewidth=1.6, zorder=3)
        axes.scatter(part["accuracy"], y, s=42, marker=marker, facecolor=face, edgecolor="black", linewidths=0.7,
                     label=f"{budget} tokens", zorder=4)  # fmt: skip
    axes.set_yticks([place[m] for m in order], order)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == REFERENCE else "normal")
    axes.set_ylim(-len(order) + 0.4, 0.6)
    axes.set_xlabel(x_name)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def small_multiples(
    points: pd.DataFrame, order: list[str], x: str, y: str, names: tuple[str, str], title: str
) -> Figure:
    """A panel a method; all panels share their axes.

    Its own line is dark, with the interval as a band where accuracy stands over budgets; the reference is black and
    dashed, the others pale.
    """
    rows = -(-len(order) // COLUMNS)
    figure = Figure(figsize=(2.1 * COLUMNS, 1.75 * rows + 1.3), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    lines = {m: points[points["method"] == m].sort_values("budget").dropna(subset=[x, y]) for m in order}
    for axes, method in zip(grid.flat, order):
        for other, line in lines.items():
            if other != method:
                axes.plot(line[x], line[y], color=PALE, linewidth=0.7, zorder=1)
        panel(axes, lines, method, x, y)
    for axes in list(grid.flat)[len(order) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(order) - COLUMNS) : len(order)]:
        axes.tick_params(labelbottom=True)  # also above the empty places of the last row
    empty = grid.flat[0]
    handles = [empty.plot([], [], color=MINE, marker="o", markersize=3.5, linewidth=2)[0],
               empty.plot([], [], color="black", linestyle="--", linewidth=1.2)[0],
               empty.plot([], [], color=PALE, linewidth=1.5)[0]]  # fmt: skip
    figure.legend(handles, ["the panel's method", REFERENCE, "all others"], loc="outside upper right", ncols=3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.supxlabel(names[0], fontsize=11)
    figure.supylabel(names[1], fontsize=11)
    return figure


def panel(axes: Axes, lines: dict[str, pd.DataFrame], method: str, x: str, y: str) -> None:
    """The panel's own line with its band, and the reference's."""
    mine = lines[method]
    if REFERENCE in lines and method != REFERENCE:
        axes.plot(lines[REFERENCE][x], lines[REFERENCE][y], color="black", linestyle="--", linewidth=1.2, zorder=3)
    if y == "accuracy" and x == "budget":
        axes.fill_between(mine[x], mine["low"], mine["high"], color=MINE, alpha=0.3, lw=0, zorder=2)
    axes.plot(mine[x], mine[y], color=MINE, marker="o", markersize=3.5, linewidth=2, zorder=4)
    axes.set_title(method, fontsize=9.5, fontweight="bold" if method == REFERENCE else "normal", pad=3)
    axes.tick_params(labelsize=8.5)


def name_marks(axes: Axes, part: pd.DataFrame) -> None:
    """The method's name beside its mark, on the side that is free; none where no side is."""
    at = axes.transData.transform(part[["shift", "accuracy"]].to_numpy(float)) * 72 / axes.figure.dpi  # points
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    order = np.argsort(part["method"].to_numpy() != REFERENCE, kind="stable")  # the reference is named in any case
    for i in order:
        name = part["method"].iloc[i]
        width, height = 5.0 * len(name), 8.0
        for right, up in ((1, 0), (0, 0), (1, 1), (1, -1), (0, 1), (0, -1)):
            x = at[i, 0] + (5 if right else -5 - width)
            y = at[i, 1] + 6 * up - height / 2
            box = (x, y, x + width, y + height)
            if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                taken.append(box)
                axes.annotate(name, part[["shift", "accuracy"]].iloc[i], xytext=(5 if right else -5, 6 * up),
                              textcoords="offset points", ha="left" if right else "right", va="center", fontsize=8,
                              fontweight="bold" if name == REFERENCE else "normal", zorder=5,
                              path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
                break


def without_full(points: pd.DataFrame) -> pd.DataFrame:
    """Points of pruned methods below the full budget."""
    full = points.loc[points["method"] == VANILLA, "budget"].max()
    kept = points["method"] != VANILLA
    return points[kept & (points["budget"] < full)] if np.isfinite(full) else points[kept]
