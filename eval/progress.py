"""How far a run is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

MINUTE = 60.0  # seconds between two lines
LINE = "{desc}: {n_fmt} of {total_fmt} questions, {elapsed} gone, {remaining} to go"


class Lines:
    """Where a bar is drawn that cannot be drawn over: what tqdm draws becomes a line, what it wipes is left out."""

    def __init__(self, log: TextIO) -> None:
        self.log = log

    def write(self, text: str) -> None:
        """A line of what there is to see."""
        if text.strip():
            self.log.write(text.strip() + "\n")

    def flush(self) -> None:
        """As of any file."""
        self.log.flush()


def progress(total: int, name: str, screen: TextIO | None = None) -> tqdm:
    """A bar to `update` and to close, on `screen` (default: stderr)."""
    screen = screen or sys.stderr
    if screen.isatty():
        return tqdm(total=total, desc=name, unit="question", file=screen, leave=False)
    seldom = {"mininterval": MINUTE, "maxinterval": MINUTE, "delay": MINUTE}
    return tqdm(total=total, desc=name, file=Lines(screen), leave=False, bar_format=LINE, **seldom)
