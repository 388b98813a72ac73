"""Writes what a sweep says, from its record folders alone: `python -m eval.report FOLDER`.

Below FOLDER it writes summary.csv, points.csv, shift_correlation.csv, tests.csv, overlap.csv, seeds.csv (where a
method ran with several), paper.csv (where the paper has such cells), report.md and figures/; timings.csv holds all
that differs between two runs of the same sweep.
Equal records give equal bytes. With several models or splits, the tables hold all of them and the figures lie in a
folder each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from eval import markdown, paper, tables
from eval.seeds import merge_seeds, seed_table
from eval.sweep import Sweep, kept_indices, overlap, read_sweeps
from pruning.errors import InputError

DIGITS = {"summary": 2, "tests": 8}  # decimals; 5 in the other tables


def write_report(folder: str | Path, figures: bool = True) -> Path:
    """Writes the report of all finished points below `folder` into it; what has no result is listed, not in the way.

    Returns:
        The path of report.md.

    Raises:
        InputError: there is no finished point below the folder.
    """
    folder = Path(folder)
    sweeps, missing = read_sweeps(folder)
    if not sweeps:
        first = f"{missing[0].folder}: {missing[0].reason}" if missing else ""
        what = f", but {len(missing)} without a result: {first}" if missing else ""
        raise InputError(f"no finished point below '{folder}'{what}; run a sweep with out={folder} first")
    found: dict[str, list[pd.DataFrame]] = {}
    sections = []
    for sweep in map(merge_seeds, sweeps):
        parts = all_tables(sweep)
        for name, table in parts.items():
            found.setdefault(name, []).append(table)
        pictures = draw(sweep, parts, folder, len(sweeps) > 1) if figures else []
        sections.append(markdown.section(sweep, parts, pictures))
    for name, parts_of in found.items():
        write_csv(
            pd.concat([part for part in parts_of if len(part)] or parts_of),
            folder / f"{name}.csv",
            DIGITS.get(name, 5),
        )
    path = folder / "report.md"
    path.write_text(markdown.document(sections, missing), encoding="utf-8")
    return path


def all_tables(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """Every table of one model and split by the name of its file."""
    summary = tables.summary(sweep)
    return {
        "summary": summary,
        "points": tables.points(sweep, summary),
        "shift_correlation": tables.shift_correlation(sweep),
        "tests": tables.tests(sweep),
        "seeds": seed_table(sweep),
        "overlap": overlaps(sweep),
        "paper": paper.beside(sweep, summary),
        "timings": tables.timings(sweep),
    }


def overlaps(sweep: Sweep) -> pd.DataFrame:
    """Mean IoU of kept patches for every two methods at every budget: model, split, budget, a, b, iou, n."""
    rows = []
    patches = max(point.budget for point in sweep.points)
    for budget in sorted({sweep.points[p].budget for p in sweep.shifted()}):
        masks = kept_indices([sweep.points[p] for p in sweep.shifted() if sweep.points[p].budget == budget], patches)
        if len(masks) < 2:
            continue
        matrix, names = overlap(masks), list(masks)
        n = len(masks[names[0]])
        rows += [
            {
                "model": sweep.model,
                "split": sweep.split,
                "budget": budget,
                "a": a,
                "b": b,
                "iou": matrix[i, j],
                "n": n,
            }
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        ]
    return pd.DataFrame(rows, columns=["model", "split", "budget", "a", "b", "iou", "n"])


def draw(sweep: Sweep, parts: dict[str, pd.DataFrame], folder: Path, several: bool) -> list[Path]:
    """The figures of one model and split; their paths relative to the report."""
    from eval.plots import draw_all
    from eval.sheet import draw_sheet

    place = folder / "figures" / (f"{sweep.model}-{sweep.split}" if several else "")
    place.mkdir(parents=True, exist_ok=True)
    for old in [*place.glob("*.png"), *place.glob("*.svg")]:
        old.unlink()  # of a sweep that had other budgets or fewer methods
    made = draw_all(sweep, parts["points"], parts["timings"], parts["overlap"], tables.KAPPA, place)
    if draw_sheet(sweep, place / "kept_tokens.png"):
        made.append(place / "kept_tokens.png")
    return [path.relative_to(folder) for path in made]


def write_csv(table: pd.DataFrame, path: Path, digits: int) -> None:
    """A table with fixed rounding, so that equal records give equal bytes; no file for an empty one."""
    if not len(table.columns) or not len(table):
        path.unlink(missing_ok=True)
        return
    table.round(digits).to_csv(path, index=False, lineterminator="\n")


def main(words: list[str] | None = None) -> int:
    """The command line; exit status 2 where there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description="Tables and figures of a sweep.")
    parser.add_argument("folder", help="where the points lie (out=)")
    arguments = parser.parse_args(words)
    try:
        path = write_report(arguments.folder)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
