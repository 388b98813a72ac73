"""Peak memory of a run by its number of samples, on made pictures.

    python scripts/bench.py memory                      1,000 and 20,000 samples, about 25 minutes on 2 cores
    python scripts/bench.py memory --samples 200 2000   about 3 minutes

Each size is a run of its own (`run.py`, unpruned and acgr_tatcs at 16 tokens on the embedded model, six questions a
picture), so that its peak is its own. Writes results/embedded/bench/memory.json and memory.md.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from eval.records import METRICS
from scripts.benches._made import write_tasks
from scripts.benches._report import parser, save

QUESTIONS = {  # task -> questions and answers on every picture; mini_mme's come in pairs
    "gqa": [("What color is the square?", "red")],
    "mme": [("Is the square red?", "yes"), ("Is the square blue?", "no")],
    "pope": [("Is there a red square in the image?", "yes")],
    "sqa": [("What color is the square?\nA. blue\nB. red\nC. pink", "B")],
    "textvqa": [("What number is on the sign?", "12")],
}
A_PICTURE = sum(map(len, QUESTIONS.values()))


def pictures(count: int) -> Iterator[bytes]:
    """JPEGs of coarse random colours, all different, 336 x 336."""
    random = np.random.default_rng(0)
    for _ in range(count):
        out = io.BytesIO()
        small = Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        small.resize((336, 336), Image.Resampling.BICUBIC).save(out, "JPEG")
        yield out.getvalue()


def peak(samples: int, method: str) -> dict[str, float]:
    """Peak memory in MB of one run over about `samples` questions."""
    with tempfile.TemporaryDirectory() as place:
        images = -(-samples // A_PICTURE)
        write_tasks(Path(place) / "data", list(pictures(images)), lambda task, i: QUESTIONS[task])
        words = ["budget=16", f"method={method}", "pictures=0", f"out={place}/out", f"tasks.data_dir={place}/data"]
        # its scores are of made-up pictures and mean nothing
        subprocess.run([sys.executable, "run.py", *words], check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((Path(place) / "out" / "mini" / "test" / method / "16" / METRICS).read_text())
    return {"samples": images * A_PICTURE, "images": images, "peak_mb": metrics["peak_memory_mb"]}


def main(arguments: list[str]) -> None:
    options = parser("memory", __doc__.splitlines()[0])
    options.add_argument("--samples", type=int, nargs="*", default=[1000, 20000])
    options.add_argument("--method", default="acgr_tatcs")
    args = options.parse_args(arguments)
    rows = [peak(samples, args.method) for samples in args.samples]
    lines = ["| samples | pictures | peak MB | to the first |", "| --- | --- | --- | --- |"]
    for r in rows:
        ratio = r["peak_mb"] / rows[0]["peak_mb"]
        lines.append(f"| {r['samples']} | {r['images']} | {r['peak_mb']:.0f} | {ratio:.2f} |")
    save("memory", {"method": args.method, "rows": rows}, "\n".join(lines) + "\n", args.out)
