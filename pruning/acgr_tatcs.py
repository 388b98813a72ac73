"""DCP-Prune: ACGR inside the tower, then TATCS at the layer that the projector reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruning.acgr import Acgr
from pruning.tatcs import Tatcs
from pruning.tokens import Question, VisualTokens


@dataclass
class AcgrTatcs(Tatcs, Acgr):
    """DCP-Prune (arXiv 2606.16633): ACGR's `schedule` and `reduce_at`, TATCS's `reduce`.

    Both stages are *reconstructions* from the paper's abstract and overview figure; see `Acgr` and `Tatcs` for the
    hyper-parameters. `acgr` and `tatcs` alone are its ablations.
    """

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """ACGR's ranking (B, n) also where TATCS is not triggered."""
        return Acgr.score(self, tokens, question)
