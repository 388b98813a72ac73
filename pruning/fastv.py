"""FastV: after a shallow decoder layer only the visual tokens that the prompt's last token attends to stay.

Chen et al., ECCV 2024 (arXiv 2403.06764); official code pkunlp-icler/FastV @ d165972, its variant that drops tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from pruning.decoder import DecoderPruner, Plan, checked


@dataclass
class FastV(DecoderPruner):
    """One stage before layer `layer`: attention row of the prompt's last token in layer `layer` - 1, mean over heads.

    Tokens keep their original positions. With depth L the keep count is (L budget - layer N) / (L - layer), rounded;
    `layer` = None takes the paper's 2, and 1 for budgets below what 2 can reach.
    """

    layer: int | None = None

    def plans(self, depth: int, n: int) -> list[Plan]:
        layers = (2, 1) if self.layer is None else checked(self.layer)
        return [self.nearest(lambda i, at=at: {at: i + 1}, n - 1, depth, n) for at in layers if at < depth]
