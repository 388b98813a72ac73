"""Downsample: the image is made smaller, so that the tower sees only K patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.base import Pruner
from pruning.tokens import Question, VisualTokens
from pruning.uniform import even_cells, row_counts


@dataclass
class Downsample(Pruner):
    """Exactly K patches of a shrunken image: row r of the cells of `uniform`, with c cells, is cut from the image
    resized (bilinear, antialiased) to (rows * patch, c * patch) pixels. At K = N it is the image itself.
    """

    resizes_image = True

    def patches(self, pixels: Tensor, patch: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) -> patches (B, K, 3, p, p) and their centres (K, 2) as (row, column) in [0, 1]."""
        keep = self.keeps(grid[0] * grid[1])
        counts = row_counts(keep, grid)
        resized = {count: self._resize(pixels, (len(counts) * patch, count * patch)) for count in set(counts)}
        rows = [
            resized[count][:, :, r * patch : (r + 1) * patch].unflatten(-1, (count, patch)).permute(0, 3, 1, 2, 4)
            for r, count in enumerate(counts)
        ]
        return torch.cat(rows, 1), torch.tensor(even_cells(keep, grid), device=pixels.device)

    @staticmethod
    def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) -> (B, 3, *size) in the same dtype."""
        small = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return small.to(pixels.dtype)

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        return tokens  # (B, K, D): the tower saw K patches already
