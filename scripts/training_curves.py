"""Draws results/embedded/training/curves.png from the stages' CSV logs there: `python scripts/training_curves.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

FOLDER = Path(__file__).resolve().parent.parent / "results" / "embedded" / "training"
STAGES = ("language_1", "tower_2", "join_1")  # in the order of training; tower_1 left no log
LABELS = {  # columns of the logs in a reader's words
    "q_sign": "reads the sign's number",
    "q_relation": "relation of two objects",
    "q_position": "position of an object",
    "q_choice_color": "choice of a colour",
    "q_shape": "shape of an object",
    "patch_shape": "a patch's shape",
    "patch_color": "a patch's colour",
    "patch_number": "a sign patch's whole number",
}
STYLES = [(0, ()), (0, (6, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)), (0, (1, 1))]


def panel(axes: plt.Axes, stage: str) -> None:
    """Accuracies of one stage over its minutes."""
    log = pd.read_csv(FOLDER / f"{stage}.csv")
    prefix = "patch_" if stage.startswith("tower") else "q_"
    shown = [name for name in LABELS if name.startswith(prefix) and name in log]
    for name, style in zip(shown, STYLES):
        axes.plot(log["minutes"], 100 * log[name], label=LABELS[name], linestyle=style, linewidth=1.6)
    axes.set_title(f"{stage}, {int(log['iteration'].iloc[-1])} iterations", fontsize=11)
    axes.set_xlabel("minutes on 2 CPU cores")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def main() -> None:
    figure, axes = plt.subplots(1, len(STAGES), figsize=(13, 4), sharey=True, layout="constrained")
    for one, stage in zip(axes, STAGES):
        panel(one, stage)
    axes[0].set_ylabel("right on fresh scenes (%)")
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
