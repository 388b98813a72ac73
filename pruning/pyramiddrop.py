"""PyramidDrop: visual tokens leave the language model in stages, by attention of the prompt's last token.

Xing et al., CVPR 2025 (arXiv 2410.17247); official code Cooperx521/PyramidDrop @ 6444f30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruning.decoder import DecoderPruner, Plan, checked, scaled

PAPER_RATIO = 0.5
LATE = ((8, 16, 24), (4, 8, 16), (2, 8, 16))  # of 32 layers; the first is the paper's
EARLIEST = (1, 8, 16)
STEPS = 10_000


@dataclass
class PyramidDrop(DecoderPruner):
    """Before stage j = 1, 2, 3 the tokens shrink to int(N ratio^j), by the attention row of the layer that follows.

    The authors do not publish the settings of their average budgets. Here: of the layer lists above, the one whose
    ratio is nearest to the paper's 0.5; the earliest only where no other reaches the budget. `layers` fixes the list.

    As upstream, positions are renumbered at each stage of the prefill while generated tokens go on from the
    unpruned length.
    """

    layers: tuple[int, ...] | None = None
    own_row: ClassVar[bool] = True

    @property
    def renumbers(self) -> bool:
        return True

    def plans(self, depth: int, n: int) -> list[Plan]:
        if self.layers is not None:
            return [self._solve(checked(self.layers), depth, n)]
        late = [self._solve(scaled(layers, depth), depth, n) for layers in LATE]
        late.sort(key=lambda plan: abs(next(iter(plan.values()), 0) / n - PAPER_RATIO))
        return [plan for plan in [*late, self._solve(scaled(EARLIEST, depth), depth, n)] if plan]

    def _solve(self, layers: tuple[int, ...], depth: int, n: int) -> Plan:
        def make(i: int) -> Plan:
            return {at: max(1, int(n * (i / STEPS) ** j)) for j, at in enumerate(layers, start=1)}

        return self.nearest(make, STEPS, depth, n)
