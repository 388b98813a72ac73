"""Writes the fixed splits of the embedded tasks, the same bytes each time: python scripts/build_tasks.py [--out FOLDER]

dev is for tuning, test is reported; training worlds have seeds of 900,000 and above or below 10,000, see mini/stages.py.
"""

import argparse
import sys
from pathlib import Path

sys.modules["torchvision"] = None  # transformers' Pillow image processor is enough
sys.path.insert(0, str(Path(__file__).parent))

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from mini.tasks import make_split  # noqa: E402

SEEDS = {"dev": 50_001, "test": 60_001}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "eval" / "tasks" / "data")
    out = ap.parse_args().out
    for split, seed in SEEDS.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        for name, rows in make_split(seed).items():
            path = out / split / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
            print(f"{path.relative_to(out)}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
