"""Time and memory of a report over a million answers: `python scripts/bench.py report`.

Writes made-up records (six methods at six budgets and the unpruned model, all shift metrics) into a temporary folder,
then runs `python -m eval.report` on them in a process of its own. Goals: 60 seconds, 2 GB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pruning.shift import METRICS
from scripts.benches._records import PATCHES, answers, questions, write_point
from scripts.benches._report import listing, parser, save

METHODS = ("acgr_tatcs", "cls_attention", "downsample", "random", "scope", "visionzip")
BUDGETS = (576, 192, 128, 64, 32, 16)
TASKS, EACH = 5, 4  # questions a task and image


def write_records(folder: Path, rows: int) -> int:
    """Records of about `rows` answers in all; how many there are."""
    images = max(1, round(rows / (1 + len(METHODS) * len(BUDGETS)) / TASKS / EACH))
    asked, rng = questions(images, EACH), np.random.default_rng(0)
    points = [("vanilla", PATCHES), *((method, budget) for method in METHODS for budget in BUDGETS)]
    for seed, (method, budget) in enumerate(points):
        table = answers(asked, budget, 0.5 + 0.01 * seed, seed, full=method == "vanilla")
        kappa = table["shift_gaussian_kl"].to_numpy()
        more = {f"shift_{name}": kappa * rng.lognormal(0, 0.3, len(kappa)) for name in METRICS}
        write_point(folder, method, budget, table.drop(columns="shift_noise").assign(**more))
    return len(asked) * len(points)


def main(arguments: list[str]) -> None:
    options = parser("report", __doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    args = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = write_records(Path(folder), args.rows)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "eval.report", folder], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "rows": rows,
        "wall_s": round(wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_gb": round(used.ru_maxrss / 2**20, 2),
    }
    save("report", found, listing(found), args.out)
