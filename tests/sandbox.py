"""A tiny set of embedded-task data and a runner of `run.py` in this process, for the tests of the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import run
from scripts.benches._made import write_tasks

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

    def ask(task: str, i: int) -> list[tuple[str, str]]:
        own = (questions or {}).get(i) if task == "gqa" else None
        return [(own or question, answer) for question, answer in asked(task, i)]

    return write_tasks(folder, images, ask)


def asked(task: str, i: int) -> list[tuple[str, str]]:
    """Questions of a task on picture `i`, and their answers."""
    color, other = COLORS[i % len(COLORS)], COLORS[(i + 1) % len(COLORS)]
    return {
        "gqa": [("What color is the square?", color)],
        "mme": [(f"Is the square {color}?", "yes"), (f"Is the square {other}?", "no")],
        "pope": [(f"Is there a {color} square in the image?", "yes")],
        "sqa": [(f"What color is the square?\nA. {other}\nB. {color}\nC. pink", "B")],
        "textvqa": [("What number is on the sign?", "12")],
    }[task]


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
