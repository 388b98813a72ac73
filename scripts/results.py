"""Takes the report of a sweep into results/embedded/, so that every figure there comes from one command.

    python scripts/results.py test outputs/full            after experiment=embedded_full; README.md is rewritten too
    python scripts/results.py curve outputs/shift_curve    after experiment=shift_curve
    python scripts/results.py ablation outputs/ablation    after experiment=ablation: results/embedded/ablation.md

FOLDER is what the sweep was given as out=. Records stay there; only tables and figures are taken.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.compact import ablation_table  # noqa: E402  (the repository's root is not a package on the path)
from eval.report import write_report  # noqa: E402
from pruning.errors import InputError  # noqa: E402

RESULTS = ROOT / "results" / "embedded"
ABLATION = """\
# One switch of acgr_tatcs at a time

Development split of the embedded tasks, 16 tokens. Avg % of the unpruned model with its 95 % interval; *default minus
it*: points of Avg %, paired over images, p after Holm over this table. Written by
`python run.py -m experiment=ablation out=outputs/ablation` and `python scripts/results.py ablation outputs/ablation`.

"""


def take(folder: Path, target: Path) -> None:
    """Replaces the tables and figures in `target` by those of `folder`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in [*folder.glob("*.csv"), folder / "report.md"]:
        shutil.copy(file, target)
    shutil.copytree(folder / "figures", target / "figures")


def main(words: list[str]) -> int:
    """The exit status: 2 where there is nothing to take."""
    if len(words) != 2 or words[0] not in ("test", "curve", "ablation"):
        sys.stderr.write(__doc__ or "")
        return 2
    name, folder = words[0], Path(words[1])
    try:
        write_report(folder, figures=name != "ablation")
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if name == "ablation":
        (RESULTS / "ablation.md").write_text(ABLATION + ablation_table(folder) + "\n", encoding="utf-8")
        return 0
    take(folder, RESULTS / name)
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "readme.py")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
