"""Vanilla: every visual token, the upper bound of each table."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.base import Pruner


@dataclass
class Vanilla(Pruner):
    """Keeps all N visual tokens whatever the budget says: the unpruned model, bit for bit."""

    def keeps(self, n: int) -> int:
        return n
