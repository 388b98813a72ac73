"""CLS attention: the K patches that the CLS token looks at most."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruning.base import Pruner
from pruning.tokens import Question, VisualTokens


@dataclass
class ClsAttention(Pruner):
    """Top-K of the CLS attention row, mean over heads, in the block that made the features.

    The plain ranking from which VisionZip, VisPruner, HoloV and ACGR start (FasterVLM, arXiv 2412.01818).
    """

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        return tokens.cls_attention.mean(1)  # (B, H, n) -> (B, n)
