"""Blank: no visual token at all; what a method scores above it comes from the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruning.base import Pruner
from pruning.tokens import Question, VisualTokens


@dataclass
class Blank(Pruner):
    """Hands over no visual token, whatever the budget says: the language model answers blind."""

    def keeps(self, n: int) -> int:
        return 0

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        return tokens.index[:, :0]  # (B, 0)
