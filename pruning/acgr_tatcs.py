"""DCP-Prune: ACGR inside the vision tower, TATCS at its end (arXiv 2606.16633)."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.acgr import Acgr
from pruning.tatcs import Tatcs


@dataclass
class AcgrTatcs(Tatcs, Acgr):
    """Both stages: `Acgr` owns the tower (schedule, reduce_at), `Tatcs` the last step (reduce).

    The order of the stages is the paper's; the formulas of both are a *reconstruction* (see their files).
    """
