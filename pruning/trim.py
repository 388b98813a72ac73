"""TRIM: the K - 1 tokens that answer to the question's CLIP embedding, and the mean of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pruning.base import Pruner
from pruning.clip_text import SIGNS, relevance
from pruning.errors import one_of
from pruning.merging import with_summary
from pruning.ops import dots, top
from pruning.tokens import Question, VisualTokens, take


@dataclass
class Trim(Pruner):
    """TRIM (arXiv 2409.10994, COLING 2025), FreedomIntelligence/TRIM @ f5a232d: rank by -(p . t), add the mean rest.

    p is a token in CLIP's joint space, t the question's CLIP embedding. The softmax of the official code changes no
    ranking and is left out, and so are its adaptive budget and its cast to float16. The summary token has no patch
    and therefore comes first in the sequence (official: last).
    """

    sign: str = "auto"
    reads_question = True
    reads_clip = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("sign", self.sign, SIGNS)

    def reduce(self, tokens: VisualTokens, question: Question) -> VisualTokens:
        score = relevance(tokens, question, self.sign, cosine=False)  # (B, n)
        kept = top(score, self.keeps(tokens.patches) - 1).sort(dim=1).values  # (B, K - 1)
        states = tokens.hidden.float()
        mine = take(states, kept)
        rest = torch.ones_like(score).scatter(1, kept, 0)  # 1 for the others
        mean = dots(states.transpose(1, 2), rest) / rest.sum(1, keepdim=True)
        return with_summary(tokens, kept, mine, mean)  # (B, K, D)
