"""VisPruner: half of the tokens by CLS attention, half by dropping the most repetitive of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.errors import InputError, one_of
from pruning.ops import by_parts, gram
from pruning.tokens import Question, VisualTokens, take

PRECISIONS = ("float64", "float32")


@by_parts
def least_repetitive(x: Tensor, keep: int, step: int = 8) -> Tensor:
    """Drops repetitive tokens round by round: (B, R, D) in list order -> (B, keep) slots.

    A round splits the list by parity into a = 0, 2, 4, ... and b = 1, 3, 5, ..., drops the `step` members of a that
    have the largest cosine to some member of b, and goes on with the rest of a (most similar first), then b.
    """
    b, r, _ = x.shape
    flat, rest = gram(x).flatten(1), torch.arange(r, device=x.device).expand(b, -1)
    while rest.shape[1] > keep:
        first, second = rest[:, 0::2], rest[:, 1::2]
        pairs = (first[:, :, None] * r + second[:, None]).flatten(1)
        closest = flat.gather(1, pairs).unflatten(1, (-1, second.shape[1])).amax(-1)  # (B, |a|)
        drop = min(step, rest.shape[1] - keep, first.shape[1])
        order = closest.argsort(dim=1, descending=True, stable=True)[:, drop:]
        rest = torch.cat([first.gather(1, order), second], 1)
    return rest


@dataclass
class VisPruner(Pruner):
    """VisPruner (arXiv 2412.01818, ICCV 2025), Theia-4869/VisPruner @ aefa01a, on the tower's output.

    int(K * important) tokens by mean CLS attention, the rest by `least_repetitive` among the others, which are
    listed by falling attention. `important = 1` is FasterVLM.

    The removal is chaotic: one swap of two nearly equal similarities changes the parity of everything between them,
    so float32 runs of the official code differ between machines (overlap 0.62 to 0.86). `precision="float64"`, the
    default, is the deterministic reading of the same rule; "float32" is what the official code runs.

    Differences from the official code: a list of odd length, and fewer than 8 candidates, work (official: shape
    error).
    """

    important: float = 0.5
    precision: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important <= 1:
            raise InputError(f"important must be between 0 and 1, got {self.important}")
        one_of("precision", self.precision, PRECISIONS)

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        dtype = getattr(torch, self.precision)
        keep = self.keeps(tokens.patches)
        attended = int(keep * self.important)
        attention = tokens.cls_attention.to(dtype).mean(1)  # (B, n)
        order = attention.argsort(dim=1, descending=True, stable=True)
        important, rest = order[:, :attended], order[:, attended:]
        if attended == keep:
            return important
        diverse = least_repetitive(take(tokens.hidden, rest).to(dtype), keep - attended)
        return torch.cat([important, rest.gather(1, diverse)], 1)
