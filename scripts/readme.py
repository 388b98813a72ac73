"""Writes the tables of README.md between their markers: the catalogue from configs/method/, figures from results/.

    python scripts/readme.py            rewrite README.md
    python scripts/readme.py --check    exit 1 where README.md is not up to date (a test runs this)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

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

    return methods_table(ROOT / "results" / "embedded" / "test")


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
