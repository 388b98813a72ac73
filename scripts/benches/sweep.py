"""A sweep of 36 points in one process against 36 single runs: `python scripts/bench.py sweep`.

Of the single runs six are made, each method and each budget once, in processes of their own beside a finished
unpruned run, which all of them take as their baseline; their mean times 36 stands for the others. Three of them, one
at the full budget, are made again in folders of their own, where each runs the unpruned model itself: what a user has
who runs the main job 36 times. The sweep's time holds its unpruned run and its report. Every file that a single run
and the sweep both have must be equal byte for byte, times aside.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benches._report import listing, parser, save
from scripts.kill_test import ROOT, comparable

METHODS = ("cls_attention", "acgr_tatcs", "uniform", "scope", "visionzip", "divprune")
BUDGETS = (32, 16, 128, 64, 192, 576)
ALONE = (0, 1, 5)  # of the six single runs, those that are also made in folders of their own


def seconds(*words: str) -> tuple[float, float]:
    """Wall and CPU time of `python run.py WORDS` in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def against(sweep: tuple[float, float], singles: list[tuple[float, float]]) -> dict[str, object]:
    """Seconds of single runs, and what the sweep takes of as many of them as it has points."""
    points, found = len(METHODS) * len(BUDGETS), {}
    for name, whole, each in zip(("wall", "cpu"), sweep, zip(*singles)):
        found[f"{name}_s"] = [round(value, 1) for value in each]
        found[f"{name}_ratio"] = round(whole / (sum(each) / len(each) * points), 3)
    return found


def main(arguments: list[str]) -> None:
    options = parser("sweep", __doc__.splitlines()[0])
    options.add_argument("--limit", default="null", help="images; all by default")
    options.add_argument("--pictures", default="1", help="drawn a point")
    args = options.parse_args(arguments)
    few = (f"limit={args.limit}", f"pictures={args.pictures}")
    runs = [(f"method={m}", f"budget={b}", *few) for m, b in zip(METHODS, BUDGETS)]
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        grid = (f"budget={','.join(map(str, BUDGETS))}", f"method={','.join(METHODS)}")
        sweep = seconds("-m", *grid, *few, f"out={many}")
        seconds("method=vanilla", few[0], "pictures=0", f"out={one}")
        beside = [seconds(*words, f"out={one}") for words in runs]
        alone = [seconds(*words, f"out={folder}/{number}") for number, words in enumerate(runs[i] for i in ALONE)]
        ours, theirs = comparable(many), comparable(one)
        different = [name for name, value in theirs.items() if ours.get(name) != value]
    found = {
        "limit": args.limit,
        "points": len(METHODS) * len(BUDGETS),
        "sweep_wall_s": round(sweep[0], 1),
        "sweep_cpu_s": round(sweep[1], 1),
        **{f"beside_unpruned_{name}": value for name, value in against(sweep, beside).items()},
        **{f"alone_{name}": value for name, value in against(sweep, alone).items()},
        "equal_files": len(theirs) - len(different),
        "different_files": different,
    }
    save("sweep", found, listing(found), args.out)
