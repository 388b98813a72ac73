"""Trains the embedded LLaVA, stage after stage or one by name; the same command goes on where it stopped.

python scripts/train_mini.py [STAGE ...] [--warm-start FILE] [--folder .train]
"""

import argparse
import sys
from pathlib import Path

sys.modules["torchvision"] = None  # transformers' Pillow image processor is enough
sys.path.insert(0, str(Path(__file__).parent))

from mini.loop import run_stage  # noqa: E402
from mini.stages import STAGES  # noqa: E402


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stages", nargs="*", help="names from scripts/mini/stages.py; none: all in order")
    ap.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / ".train")
    ap.add_argument("--warm-start", type=Path)
    a = ap.parse_args()
    a.folder.mkdir(exist_ok=True)
    for stage in STAGES:
        if not a.stages or stage.name in a.stages:
            run_stage(stage, a.folder, a.warm_start)


if __name__ == "__main__":
    main()
