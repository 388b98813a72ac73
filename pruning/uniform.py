"""Uniform: K patches spread evenly over the grid, blind to the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.tokens import Question, VisualTokens


def row_counts(k: int, grid: tuple[int, int]) -> list[int]:
    """Cells in each row when `k` cells tile the image in rows of nearly equal cells.

    round(sqrt(k)) rows for a square grid; the first k mod rows of them hold one cell more. Exact for every
    k from 1 to rows * columns; at the full grid the cells are the patches.
    """
    height, width = grid
    rows = min(height, max(1, round((k * height / width) ** 0.5), -(-k // width)))
    short, longer = divmod(k, rows)
    return [short + (r < longer) for r in range(rows)]


def even_cells(k: int, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Centres (row, column) in [0, 1] of the `k` cells of `row_counts`, row by row."""
    counts = row_counts(k, grid)
    return [((r + 0.5) / len(counts), (c + 0.5) / count) for r, count in enumerate(counts) for c in range(count)]


def cell_patches(k: int, grid: tuple[int, int]) -> list[int]:
    """The patch numbers that hold the centres of `even_cells`: `k` distinct ones in raster order."""
    height, width = grid
    return [int(y * height) * width + int(x * width) for y, x in even_cells(k, grid)]


@dataclass
class Uniform(Pruner):
    """The patches under the centres of K equal cells: round(sqrt(K)) rows, the first rows one cell longer."""

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        patches = cell_patches(self.keeps(tokens.patches), tokens.grid)
        return torch.tensor(patches, device=tokens.hidden.device).expand(len(tokens.hidden), -1)  # (B, K)
