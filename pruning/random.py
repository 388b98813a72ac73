"""Random: K tokens drawn without replacement, the floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.tokens import Question, VisualTokens


@dataclass
class Random(Pruner):
    """Uniform scores from a generator seeded by `seed` and by the image's own pixels.

    The draw of an image is therefore the same alone, inside a batch, and in every run. A larger budget keeps a
    superset.
    """

    seed: int = 0

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        images = [0] * len(tokens.hidden) if tokens.seed is None else tokens.seed.tolist()
        rows = [
            torch.rand(tokens.count, generator=torch.Generator().manual_seed((image + 7919 * self.seed) % 2**63))
            for image in images
        ]
        return torch.stack(rows).to(tokens.hidden.device)  # (B, n)
