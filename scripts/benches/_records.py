"""A sweep's record folders with a known answer, written as the record contract says."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

TASKS = ("mini_gqa", "mini_mme", "mini_pope", "mini_sqa", "mini_textvqa")
METRICS = ("gaussian_kl", "energy", "noise")
PATCHES = 576


def questions(images: int, each: int, tasks: tuple[str, ...] = TASKS) -> pd.DataFrame:
    """`each` questions on every image in turn over the tasks; mini_mme's come in pairs."""
    rows = []
    for task in tasks:
        for image in range(images):
            for k in range(each):
                pair = f"{image}-{k // 2}" if task == "mini_mme" else None
                rows.append((task, image * each + k, f"{task}-{image}-{k}", f"im{image:04d}", pair))
    return pd.DataFrame(rows, columns=["task", "doc_id", "question_id", "image_id", "pair_id"])


def write_point(root: Path, method: str, budget: int, table: pd.DataFrame, seconds: float = 1.0, model: str = "mini",
                **overrides: object) -> Path:  # fmt: skip
    """One finished point: `table` holds the questions, score, index and the shift columns."""
    label = f"{method}-{zlib.crc32(repr(overrides).encode()):08x}" if overrides else method
    folder = root / model / "test" / label / str(budget)
    folder.mkdir(parents=True)
    rows = table.assign(type="t", question="what ?", target="a", prediction="a", failed=None, visual_tokens=budget)
    rows.to_parquet(folder / "samples.parquet", index=False)
    facts = {
        "method": method, "budget": budget, "model": model, "split": "test", "overrides": overrides,
        "status": "finished", "tasks": {}, "average": 0.0, "shift": {}, "visual_tokens": budget, "failed": 0,
        "seconds": {"tower": seconds, "decode": 2 * seconds}, "peak_memory_mb": 100.0, "created": "2026-01-01",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(facts))
    return folder


def write_failed(root: Path, method: str, budget: int, reason: str, status: str = "failed") -> None:
    """A point that did not finish."""
    folder = root / "mini" / "test" / method / str(budget)
    folder.mkdir(parents=True)
    facts = {"method": method, "budget": budget, "model": "mini", "split": "test", "status": status}
    (folder / "metrics.json").write_text(json.dumps(facts | {"reason": reason}))


def answers(asked: pd.DataFrame, budget: int, skill: float, seed: int, full: bool = False) -> pd.DataFrame:
    """Answers of a method: right where an even spread of the questions is below a curve of skill and budget.

    gaussian_kl and energy fall as that curve rises, with noise of its own in each sample; `noise` knows nothing.
    """
    rng = np.random.default_rng(seed)
    n = len(asked)
    level = 0.95 if full else 0.9 - 0.5 * (1 - skill) * (16 / budget) ** 0.5
    hardness = np.random.default_rng(99).random(n)  # of each question, the same for all methods
    luck = rng.normal(0, 0.15, n)
    kappa = 0.0 * luck if full else np.exp(3 * (1 - level) - luck + rng.normal(0, 0.1, n))
    kept = np.arange(PATCHES) if full else None
    index = [kept if full else np.sort(rng.choice(PATCHES, budget, replace=False)) for _ in range(n)]
    return asked.assign(
        score=(hardness < level + 0.5 * luck).astype(float),
        index=[i.astype(np.int16) for i in index],
        shift_gaussian_kl=kappa,
        shift_energy=np.sqrt(kappa),
        shift_noise=0.0 if full else rng.random(n),
    )


def write_sweep(root: Path, methods: dict[str, float], budgets: tuple[int, ...], images: int, each: int) -> None:
    """The unpruned model and every method (name -> skill 0..1) at every budget."""
    asked = questions(images, each)
    write_point(root, "vanilla", PATCHES, answers(asked, PATCHES, 1.0, 0, full=True), seconds=3.0)
    for m, (method, skill) in enumerate(methods.items()):
        for budget in budgets:
            table = answers(asked, budget, skill, 1000 * m + budget)
            write_point(root, method, budget, table, seconds=0.5 + budget / 300 + m / 50)
