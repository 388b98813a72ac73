"""After a run, the paper's cells beside ours with a verdict each: `python run.py experiment=cell ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

WORDS = {"within interval": "pass: the paper's number lies in our 95 % interval"}


class Verdict(Callback):
    """Prints the verdicts of a finished point; says nothing where the run itself has failed and said why."""

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the record that the run has written."""
        from eval.records import SAMPLES
        from eval.settings import check

        plan = check(config, config.hydra.runtime.choices["method"])
        if (plan.folder / SAMPLES).is_file():
            print("\n" + verdicts(plan.folder), flush=True)


def verdicts(folder: Path) -> str:
    """A line a cell that the paper has: ours with its standard error, the paper's, the difference, the verdict.

    Args:
        folder: the record of a point, beside the unpruned model's.
    """
    from eval import paper, tables
    from eval.sweep import find_points, read_group
    from eval.table import columns

    ours, full = find_points(folder)[0], find_points(folder.parent.parent / "vanilla")[0]
    sweep, _ = read_group(folder, [*(p for p in full if p.folder != folder), *ours])
    assert sweep is not None  # the caller has seen its samples
    name, budget = ours[0].label, ours[0].budget
    cells = paper.beside(sweep, tables.summary(sweep))
    cells = cells[(cells["method"] == name) & (cells["budget"] == budget)] if len(cells) else cells
    if not len(cells):
        return f"the paper has no cell for {name} at {budget} tokens"
    rows = [["the paper's cells", "ours", "SE", "paper", "difference", "  verdict"]]
    for cell in cells.to_dict("records"):
        verdict = WORDS.get(cell["verdict"], cell["verdict"]) + (f": {cell['why']}" if cell["why"] else "")
        digits = 0 if cell["column"] == "MME" and cell["task"] == "mme" else 1
        numbers = (f"{cell[key]:.{digits}f}" for key in ("ours", "stderr", "paper"))
        apart = f"{cell['difference']:+.{digits}f}" if np.isfinite(cell["difference"]) else "-"
        rows.append([cell["column"], *numbers, apart, f"  {verdict}"])
    wide = max(len(row[-1]) for row in rows)
    return "\n".join(line.rstrip() for line in columns([[*row[:-1], row[-1].ljust(wide)] for row in rows]))
