"""First answer-token logits of the unpruned run: answers times vocabulary, so they lie on the disk, not in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

Place = tuple[int, int]  # first number and how many, in a file of float16 numbers
BYTES = 2


class LogitsFile:
    """Rows of float16 numbers, one after another, while a run goes on.

    Args:
        good: so many numbers are whole; what follows is of a batch that was not finished, and goes.
    """

    def __init__(self, path: Path, good: int) -> None:
        self.path, self.end = path, good
        self._file = path.open("r+b" if good else "wb")
        self._file.truncate(good * BYTES)
        self._file.seek(good * BYTES)

    def append(self, rows: Iterable[np.ndarray]) -> list[Place]:
        """Where the rows (V,) lie now; they are on the disk when this returns."""
        places = []
        for row in rows:
            self._file.write(np.ascontiguousarray(row, np.float16).data)
            places.append((self.end, len(row)))
            self.end += len(row)
        self._file.flush()
        os.fsync(self._file.fileno())
        return places

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def numbers_in(path: Path) -> int:
    """How many numbers a file of float16 holds; 0 where there is none."""
    return path.stat().st_size // BYTES if path.is_file() else 0


def write_npy(path: Path, rows: Path, places: list[Place | None]) -> None:
    """Gathers rows into an array file (n, V) float16; a failed question has no place and becomes NaN."""
    width = max((place[1] for place in places if place), default=0)
    blank = np.full(width, np.nan, np.float16)
    with path.open("wb") as file, rows.open("rb") as source:
        header = {"descr": np.lib.format.dtype_to_descr(blank.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(places), width)})
        for place in places:
            if place:
                source.seek(place[0] * BYTES)
            file.write(source.read(width * BYTES) if place else blank.data)


def rows_of(path: Path) -> Callable[[int], np.ndarray]:
    """Number of a row -> that row (V,) float32 of such an array file."""
    table = np.load(path, mmap_mode="r")  # its header alone: mapped pages would count as this process's memory
    (_, width), start = table.shape, table.offset

    def row(number: int) -> np.ndarray:
        found = np.fromfile(path, np.float16, width, offset=start + number * width * BYTES)
        return found.astype(np.float32)

    return row
