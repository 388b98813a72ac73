"""Pool: the image cut into K equal cells, each averaged to one token."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import never_zero
from pruning.tokens import Question, VisualTokens
from pruning.uniform import cell_patches, row_counts


def overlap(cells: int, patches: int) -> Tensor:
    """Share of each of `cells` equal intervals that lies in each of `patches` equal intervals: (cells, patches)."""
    low, high = torch.arange(cells) * patches / cells, torch.arange(1, cells + 1) * patches / cells
    place = torch.arange(patches)
    inside = torch.minimum(high[:, None], place + 1) - torch.maximum(low[:, None], place)
    return inside.clamp(min=0) * cells / patches


def cell_weights(k: int, grid: tuple[int, int]) -> Tensor:
    """Share of each of the `k` cells of `uniform.even_cells` that lies in each patch: (k, N), rows sum to 1."""
    counts = row_counts(k, grid)
    rows = overlap(len(counts), grid[0])
    across = {count: overlap(count, grid[1]) for count in set(counts)}
    return torch.cat([torch.einsum("y,cx->cyx", row, across[count]).flatten(1) for row, count in zip(rows, counts)])


@dataclass
class Pool(Pruner):
    """Average pooling to exactly K tokens over the cells of `uniform`, patches weighted by their overlap.

    At K = N the cells are the patches. A merged token's index is the patch under its cell's centre; an average that
    cancels out becomes that patch's token.
    """

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        keep, device = self.keeps(tokens.patches), tokens.hidden.device
        centre = torch.tensor(cell_patches(keep, tokens.grid), device=device).expand(len(tokens.hidden), -1)
        mean = cell_weights(keep, tokens.grid).to(device) @ tokens.hidden.float()  # (K, N) @ (B, N, D)
        size = torch.full(centre.shape, tokens.patches / keep, device=device)
        out = replace(tokens.gather(centre), size=size)
        return out.with_hidden(never_zero(mean.to(out.hidden.dtype), out.hidden))  # (B, K, D)
