"""What the benches share: quartiles, the facts of the machine, files in results/embedded/bench/."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

OUT = Path("results/embedded/bench")


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def listing(result: dict) -> str:
    """A few figures as a table of names and values."""
    rows = [f"| {name} | {json.dumps(value)} |" for name, value in result.items()]
    return "\n".join(["| figure | value |", "| --- | --- |", *rows]) + "\n"


def parser(name: str, words: str) -> argparse.ArgumentParser:
    """The command line of a bench, with what all of them understand."""
    made = argparse.ArgumentParser(
        prog=f"bench.py {name}", description=words, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--out", type=Path, default=OUT, help=f"folder of {name}.json and {name}.md")
    return made


def save(name: str, result: dict, table: str, out: Path) -> None:
    """Writes NAME.json, with versions and hardware, and NAME.md; prints the table."""
    from eval import facts

    out.mkdir(parents=True, exist_ok=True)
    about = {"versions": facts.versions(), "commit": facts.commit(), "hardware": facts.hardware()}
    (out / f"{name}.json").write_text(json.dumps(about | result, indent=1) + "\n")
    (out / f"{name}.md").write_text(table)
    print(table)
