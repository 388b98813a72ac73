"""README's two files of a new method, added to a copy: --help, contract tests, run and tables take it up."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.sandbox import encoded, picture, write_data

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("configs", "eval", "models", "pruning", "results/paper", "tests", "run.py", "pyproject.toml")
BLOCK = re.compile(r"^`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```", re.M | re.S)


def place(source: str, target: str) -> None:
    """A copy of code; data and weights are linked."""
    if source.endswith((".parquet", ".safetensors", ".npz")):
        Path(target).symlink_to(source)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with exactly the files that README.md shows added to it."""
    copy = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=unwanted, copy_function=place)
        else:
            place(str(ROOT / name), str(copy / name))
    files = dict(BLOCK.findall((ROOT / "README.md").read_text()))
    assert sorted(files) == ["configs/method/brightest.yaml", "pruning/brightest.py"]
    for name, text in files.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    return copy


def python(copy: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_help_lists_it(copy: Path) -> None:
    shown = python(copy, "run.py", "--help")
    assert re.search(r"^  brightest +keeps the tokens with the largest norm$", shown, re.M)


def test_the_contract_matrix_takes_it_up(copy: Path) -> None:
    shown = python(copy, "-m", "pytest", "tests/test_contract.py", "-k", "brightest", "-vv")
    assert re.search(r"test_structured\[brightest-bf16\] PASSED", shown) and " passed" in shown
    assert "test_adversarial[brightest] PASSED" in shown


def test_it_runs_and_stands_in_the_tables(copy: Path) -> None:
    data = write_data(copy / "data", [encoded(picture(0))])
    words = ["budget=16", "method=brightest", f"tasks.data_dir={data}", "tasks.names=[mini_gqa]", "pictures=0"]
    shown = python(copy, "run.py", "-m", *words, "out=out")
    assert "brightest on mini: 16 visual tokens" in shown
    summary = pd.read_csv(copy / "out" / "summary.csv")
    assert set(summary["method"]) == {"vanilla", "brightest"}
    assert "| brightest |" in (copy / "out" / "report.md").read_text()
