"""Trains the embedded LLaVA, stage after stage or one by name; the same command goes on where it stopped.

python scripts/train_mini.py [STAGE ...] [--warm-start FILE] [--folder .train]

Without --warm-start everything begins from random weights; with it, FILE (safetensors with the names of
`mini.join.Joined`) stands in for the first two stages.
"""

import argparse
import sys
from pathlib import Path

sys.modules["torchvision"] = None  # transformers' Pillow image processor is enough
sys.path.insert(0, str(Path(__file__).parent))

from mini.loop import run_stage  # noqa: E402
from mini.stages import COLD, STAGES  # noqa: E402


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stages", nargs="*", help="names from scripts/mini/stages.py; none: all in order")
    ap.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / ".train")
    ap.add_argument("--warm-start", type=Path)
    a = ap.parse_args()
    known = [stage.name for stage in STAGES]
    if set(a.stages) - set(known):
        ap.error(f"unknown stage {' '.join(sorted(set(a.stages) - set(known)))}; known: {', '.join(known)}")
    if a.warm_start and not a.warm_start.is_file():
        ap.error(f"no file {a.warm_start}; leave --warm-start out to begin from random weights")
    a.folder.mkdir(exist_ok=True)
    for stage in STAGES:
        if stage.name in a.stages or not (a.stages or (a.warm_start and stage.name in COLD)):
            run_stage(stage, a.folder, a.warm_start)


if __name__ == "__main__":
    main()
