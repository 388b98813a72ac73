"""Writes the tables of README.md between their markers: the catalogue from configs/method/, figures from results/.

    python scripts/readme.py            rewrite README.md
    python scripts/readme.py --check    exit 1 where README.md is not up to date (a test runs this)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LEGEND = """\
Avg % of the unpruned model on the test split with its 95 % interval (bootstrap over images). The sign compares with
`acgr_tatcs` at the same budget (paired, Holm over the table at 0.05): **-** below it, **+** above it, **=** not to be
told apart. All of it: [results/embedded/test/report.md](results/embedded/test/report.md).

"""
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pruning  # noqa: E402  (the repository's root is not a package on the path)


def methods() -> str:
    """One row a method: its name and the first comment line of its YAML."""
    rows = [f"| `{name}` | {pruning.summary(name)} |" for name in pruning.names()]
    return "\n".join(["| `method=` | what it does |", "| --- | --- |", *rows])


def included(path: str) -> str:
    """A generated markdown file, as it is; empty where it has not been generated yet."""
    file = ROOT / path
    return file.read_text().strip() if file.is_file() else ""


def main_job() -> str:
    """What the main job printed: `python run.py budget=16 method=acgr_tatcs > results/embedded/main_job.txt`."""
    return f"```\n{included('results/embedded/main_job.txt')}\n```"


def results() -> str:
    """Every method and budget of results/embedded/test, which `scripts/results.py test` writes."""
    from eval.compact import methods_table

    folder = "results/embedded/test"
    picture = f"{folder}/figures/ranking.png"
    shown = f"![Accuracy by method and budget]({picture})\n\n" if (ROOT / picture).is_file() else ""
    return shown + LEGEND + methods_table(ROOT / folder)


SECTIONS = {"methods": methods, "main_job": main_job, "results": results}


def render(text: str) -> str:
    """README text with every marked section made anew."""
    for name, make in SECTIONS.items():
        pattern = rf"(<!-- begin:{name} -->).*?(<!-- end:{name} -->)"
        text = re.sub(pattern, lambda m, make=make: f"{m[1]}\n{make()}\n{m[2]}", text, flags=re.S)
    return text


def main() -> int:
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = render(old)
    if "--check" in sys.argv:
        return int(old != new)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
