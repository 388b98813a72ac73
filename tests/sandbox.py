"""A tiny set of embedded-task data and a runner of `run.py` in this process, for the tests of the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw

import run

COLORS = ["red", "green", "blue", "yellow", "purple", "orange"]


def picture(number: int) -> Image.Image:
    """A coloured square somewhere on grey."""
    image = Image.new("RGB", (336, 336), (120, 125, 118))
    x, y = 40 + 30 * number, 200 - 25 * number
    ImageDraw.Draw(image).rectangle((x, y, x + 60, y + 60), fill=COLORS[number % len(COLORS)])
    return image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def write_data(folder: Path, images: list[bytes], questions: dict[int, str] | None = None) -> Path:
    """Five tasks on `images`; `questions` replaces the mini_gqa question of some images. Returns tasks.data_dir."""
    split = folder / "test"
    split.mkdir(parents=True)
    names = [f"test-{i:04d}" for i in range(len(images))]
    pd.DataFrame(
        {"image_id": names, "image": [{"bytes": b, "path": None} for b in images], "boxes": "[]"}
    ).to_parquet(split / "images.parquet")
    for task in ("gqa", "mme", "pope", "sqa", "textvqa"):
        rows = [row for i, name in enumerate(names) for row in asked(task, i, name)]
        for row in rows:
            number = int(row["image_id"][-4:])
            row["question"] = (questions or {}).get(number, row["question"]) if task == "gqa" else row["question"]
        pd.DataFrame(rows).to_parquet(split / f"mini_{task}.parquet")
    return folder


def asked(task: str, i: int, name: str) -> list[dict]:
    color, other = COLORS[i % len(COLORS)], COLORS[(i + 1) % len(COLORS)]
    made = {
        "gqa": [("What color is the square?", color)],
        "mme": [(f"Is the square {color}?", "yes"), (f"Is the square {other}?", "no")],
        "pope": [(f"Is there a {color} square in the image?", "yes")],
        "sqa": [(f"What color is the square?\nA. {other}\nB. {color}\nC. pink", "B")],
        "textvqa": [("What number is on the sign?", "12")],
    }[task]
    pair = {"pair_id": name} if task == "mme" else {}
    return [
        {"question_id": f"{task}-{name}-{j}", "image_id": name, "question": q, "answer": a, "type": task, **pair}
        for j, (q, a) in enumerate(made)
    ]


def call(*words: str) -> int:
    """`python run.py WORDS` in this process: its exit status."""
    try:
        return run.main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that the command ends in."""
    assert call(*words) == 2
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and not shown.out, shown.err
    return lines[0].removeprefix("error: ")
