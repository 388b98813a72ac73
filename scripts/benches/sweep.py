"""A sweep of 36 points in one process against 36 single runs: `python scripts/bench.py sweep`.

Of the single runs six are made, each method and each budget once, in processes of their own beside a finished
unpruned run; their mean times 36 stands for the others. The sweep's time holds its unpruned run and its report. CPU
seconds are compared, which a busy machine changes less than the clock's. Every file that both have must be equal byte
for byte, times aside.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benches._report import listing, save
from scripts.kill_test import ROOT, comparable

METHODS = ("cls_attention", "acgr_tatcs", "uniform", "scope", "visionzip", "divprune")
BUDGETS = (32, 16, 128, 64, 192, 576)


def cpu_seconds(*words: str) -> float:
    """CPU time of `python run.py WORDS` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.py sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--limit", default="null", help="images; all by default")
    parser.add_argument("--pictures", default="1", help="drawn a point")
    args = parser.parse_args(arguments)
    few = (f"limit={args.limit}", f"pictures={args.pictures}")
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        grid = (f"budget={','.join(map(str, BUDGETS))}", f"method={','.join(METHODS)}")
        sweep = cpu_seconds("-m", *grid, *few, f"out={many}")
        cpu_seconds("method=vanilla", few[0], "pictures=0", f"out={one}")
        pairs = zip(METHODS, BUDGETS)
        single = [cpu_seconds(f"method={m}", f"budget={b}", *few, f"out={one}") for m, b in pairs]
        ours, theirs = comparable(many), comparable(one)
        different = [name for name, value in theirs.items() if ours.get(name) != value]
    points = len(METHODS) * len(BUDGETS)
    found = {
        "limit": args.limit,
        "points": points,
        "sweep_cpu_s": round(sweep, 1),
        "single_cpu_s": [round(value, 1) for value in single],
        "ratio": round(sweep / (sum(single) / len(single) * points), 3),
        "equal_files": len(theirs) - len(different),
        "different_files": different,
    }
    save("sweep", found, listing(found))
