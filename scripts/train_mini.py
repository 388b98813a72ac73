"""Trains the embedded LLaVA, stage after stage or one by name; the same command goes on where it stopped.

python scripts/train_mini.py [STAGE ...] [--warm-start FILE] [--folder .train]
python scripts/train_mini.py --save FOLDER    no training: the last stage's checkpoint as a Hugging Face folder such as
                                              models/mini, and 100 answers of it beside the training code's

Without --warm-start everything begins from random weights; with it, FILE (safetensors with the names of
`mini.join.Joined`) stands in for the first two stages.
"""

import argparse
import sys
from pathlib import Path

sys.modules["torchvision"] = None  # transformers' Pillow image processor is enough
sys.path.insert(0, str(Path(__file__).parent))

from mini.build import compare, write_folder  # noqa: E402
from mini.join import Joined  # noqa: E402
from mini.loop import read_weights, run_stage  # noqa: E402
from mini.stages import COLD, STAGES  # noqa: E402


def save(checkpoint: Path, folder: Path) -> None:
    """Writes the model of a checkpoint to `folder` and prints how many answers read back are the training code's."""
    model = Joined()
    model.load_state_dict(read_weights(checkpoint))
    write_folder(model, folder)
    count = compare(model, folder)
    print(
        f"{folder}: {count['same']} of {count['questions']} answers equal the training code's; {count['right']} right"
    )


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stages", nargs="*", help="names from scripts/mini/stages.py; none: all in order")
    ap.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / ".train")
    ap.add_argument("--warm-start", type=Path)
    ap.add_argument("--save", type=Path, metavar="FOLDER")
    a = ap.parse_args()
    known = [stage.name for stage in STAGES]
    if set(a.stages) - set(known):
        ap.error(f"unknown stage {' '.join(sorted(set(a.stages) - set(known)))}; known: {', '.join(known)}")
    if a.warm_start and not a.warm_start.is_file():
        ap.error(f"no file {a.warm_start}; leave --warm-start out to begin from random weights")
    if a.save:
        checkpoint = a.folder / f"{known[-1]}.pt"
        if a.stages or a.warm_start:
            ap.error("--save trains nothing; give it without stages and --warm-start")
        if not checkpoint.is_file():
            ap.error(f"no {checkpoint}; train first: python scripts/train_mini.py --folder {a.folder}")
        return save(checkpoint, a.save)
    a.folder.mkdir(exist_ok=True)
    for stage in STAGES:
        if stage.name in a.stages or not (a.stages or (a.warm_start and stage.name in COLD)):
            run_stage(stage, a.folder, a.warm_start)


if __name__ == "__main__":
    main()
