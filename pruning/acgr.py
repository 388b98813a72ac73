"""ACGR, Anchor-Context Graph Recovery: tokens that leave hand their content to those that stay, in the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.base import Pruner
from pruning.errors import InputError, one_of
from pruning.ops import assign_sum, centres, cosine, gram, top
from pruning.tokens import Question, VisualTokens, take

SHAPES = ("geometric", "linear")


@dataclass
class Acgr(Pruner):
    """Keeps the patches that CLS attends to; before the others leave, the kept ones take up their content.

    Source: DCP-Prune, arXiv 2606.16633, overview figure: score and partition into anchors and contexts, bipartite
    graph of semantic and spatial similarity, recovery along its edges, removal; progressively, in intermediate
    layers. Every formula and number is a *reconstruction*; each has its switch here.

    Args:
        distinct: rank a token lower the more it repeats one that CLS attends to more (*reconstruction*); off: the
            CLS attention alone.
        power: how alike two tokens must be for that (*reconstruction*).
        layers: after which blocks it acts: fractions in (0, 1] of the blocks that run, or their numbers from 0, whole
            numbers, rising (*reconstruction*).
        shape: the counts fall by equal ratios (geometric) or equal differences (linear) (*reconstruction*).
        survivors: tokens after the last stage as a multiple of the budget, at most N
            (*reconstruction*). The rest is decided at the layer that the projector reads.
        tau: temperature of the semantic term cos/tau (*reconstruction*).
        sigma: reach of the spatial term in image sides (*reconstruction*).
        neighbours: anchors that a context may flow into (*reconstruction*).
        strength: largest share of an anchor that is replaced, 0 to 1 (*reconstruction*).
        keep_norm: rescale a recovered anchor to its old norm (*reconstruction*).
        semantic, spatial: use the term in the graph (*reconstruction*).

    Raises:
        InputError: a value out of its range.
    """

    distinct: bool = True
    power: float = 2.0
    layers: Sequence[float] = (0.6, 0.8)
    shape: str = "geometric"
    survivors: float = 8.0
    tau: float = 0.1
    sigma: float = 0.1
    neighbours: int = 4
    strength: float = 0.1
    keep_norm: bool = True
    semantic: bool = True
    spatial: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = {"power": self.power, "tau": self.tau, "sigma": self.sigma, "neighbours": self.neighbours}
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name} must be above 0, got {value}")
        if not 0 <= self.strength <= 1:
            raise InputError(f"strength must be between 0 and 1, got {self.strength}")
        if self.survivors < 1:
            raise InputError(f"survivors must be at least 1 (times the budget), got {self.survivors}")
        whole = all(isinstance(x, int) and x >= 0 for x in self.layers)
        fractions = all(isinstance(x, float) and 0 < x <= 1 for x in self.layers)
        if not (whole or fractions) or list(self.layers) != sorted(set(self.layers)):
            raise InputError(
                f"layers must be rising fractions of the tower in (0, 1], or block numbers, got {list(self.layers)}"
            )
        one_of("shape", self.shape, SHAPES)
        if not (self.semantic or self.spatial):
            raise InputError("the graph has no term: set semantic or spatial; strength=0 switches recovery off")

    def schedule(self, depth: int, n: int) -> dict[int, int]:
        """From n down to `survivors * budget`; stages that round to the same block are one, empty ones are left out.

        Raises:
            InputError: a block number that this tower does not have.
        """
        last = min(n, max(self.budget, round(self.survivors * self.budget)))
        stages = sorted({x if isinstance(x, int) else max(0, round(x * depth) - 1) for x in self.layers})
        if stages and stages[-1] >= depth:
            raise InputError(f"layers must lie below {depth}, the blocks of this tower that run, got {stages}")
        counts = falling(n, last, len(stages), self.shape)
        return {layer: keep for layer, keep, before in zip(stages, counts, [n, *counts]) if keep < before}

    def reduce_at(self, layer: int, tokens: VisualTokens, keep: int) -> VisualTokens:
        """One stage: (B, n, D) -> (B, keep, D) with the trace of where each context went."""
        anchors, contexts = partition(self.score(tokens, None), keep)
        x, place = tokens.hidden.float(), centres(tokens.index, tokens.grid)
        affinity = context_graph(
            take(x, contexts), take(x, anchors), take(place, contexts), take(place, anchors),
            self.tau if self.semantic else None, self.sigma if self.spatial else None,
        )  # fmt: skip
        weight, slot = strongest(affinity, min(self.neighbours, keep))
        recovered = recover(take(x, anchors), take(x, contexts), weight, slot, self.strength, self.keep_norm)
        stay = tokens.gather(anchors).with_hidden(recovered)
        heaviest = anchors.gather(1, slot.gather(2, weight.argmax(2, keepdim=True))[..., 0])  # (B, C)
        trace = record(tokens, contexts, heaviest, layer)
        taken = masses(weight, slot, keep)
        return replace(stay, trace=trace | {"recovered_mass": taken_in(tokens, anchors, taken)})

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """(B, n) CLS attention, lowered for what repeats a more salient token (*reconstruction*)."""
        saliency = tokens.cls_attention.mean(1)
        return distinct(saliency, tokens.hidden, self.power) if self.distinct else saliency


def falling(n: int, last: int, stages: int, shape: str) -> list[int]:
    """Tokens after each stage on the way from `n` to `last` (*reconstruction*)."""
    parts = [(j + 1) / stages for j in range(stages)]
    if shape == "linear":
        return [round(n + (last - n) * part) for part in parts]
    return [round(n * (last / n) ** part) for part in parts]


def distinct(saliency: Tensor, hidden: Tensor, power: float) -> Tensor:
    """sqrt(s_i) (1 - max_j cos(x_i, x_j)^power) over the tokens j more salient than i (*reconstruction*).

    Args:
        saliency: (B, n).
        hidden: (B, n, D); centred on their mean first, negative cosines count as 0.

    Returns:
        (B, n). A plain ranking would keep many patches of one salient object; this keeps one of each kind, and what
        leaves has a look-alike among the anchors to flow into.
    """
    x = hidden.float()
    similar = gram(x - x.mean(1, keepdim=True)).clamp(0, 1)
    repeats = (similar * (saliency[:, None, :] > saliency[:, :, None])).amax(2)
    return saliency.clamp(min=0).sqrt() * (1 - repeats**power)


def partition(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Anchors, the `keep` best, and contexts, the rest (*reconstruction*).

    Scores (B, n) -> slots (B, A), (B, C), each ascending.
    """
    order = top(score, score.shape[1])
    return order[:, :keep].sort(1).values, order[:, keep:].sort(1).values


def context_graph(
    contexts: Tensor, anchors: Tensor, context_place: Tensor, anchor_place: Tensor,
    tau: float | None, sigma: float | None,
) -> Tensor:  # fmt: skip
    """Logits of the bipartite graph (*reconstruction*): cos(x_c, x_a)/tau - |p_c - p_a|^2 / (2 sigma^2).

    Args:
        contexts, anchors: (B, C, D), (B, A, D).
        context_place, anchor_place: patch centres (B, C, 2), (B, A, 2) in [0, 1].
        tau, sigma: None leaves the term out.

    Returns:
        (B, C, A).
    """
    logits = contexts.new_zeros(contexts.shape[0], contexts.shape[1], anchors.shape[1])
    if tau is not None:
        logits = logits + cosine(contexts, anchors) / tau
    if sigma is not None:
        apart = (context_place[:, :, None] - anchor_place[:, None]).square().sum(-1)
        logits = logits - apart / (2 * sigma**2)
    return logits


def strongest(logits: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r best anchors of each context and the softmax over them (*reconstruction*).

    Logits (B, C, A) -> weights (B, C, r) that sum to 1, anchor slots (B, C, r).
    """
    slot = top(logits, r)
    return logits.gather(-1, slot).softmax(-1), slot


def masses(weight: Tensor, slot: Tensor, anchors: int) -> Tensor:
    """M_a = sum_c w_ca: what flows into each anchor (*reconstruction*), (B, C, r) at slots (B, C, r) -> (B, A)."""
    return weight.new_zeros(len(weight), anchors).scatter_add_(1, slot.flatten(1), weight.flatten(1))


def recover(
    anchors: Tensor, contexts: Tensor, weight: Tensor, slot: Tensor, strength: float, keep_norm: bool
) -> Tensor:
    """Anchors (B, A, D) after taking up their contexts (*reconstruction*).

    M_a = sum_c w_ca;  m_a = sum_c w_ca x_c / M_a;  beta_a = strength * M_a / (1 + M_a);
    x_a <- (1 - beta_a) x_a + beta_a m_a. An anchor without contexts stays what it is.
    """
    mass = masses(weight, slot, anchors.shape[1])
    flow = (weight[..., None] * contexts[:, :, None]).flatten(1, 2)  # (B, C * r, D)
    total = assign_sum(flow, slot.flatten(1), anchors.shape[1])
    mean = total / mass.clamp(min=torch.finfo(mass.dtype).tiny)[..., None]
    beta = (strength * mass / (1 + mass))[..., None]
    mixed = (1 - beta) * anchors + beta * mean
    if keep_norm:
        mixed = F.normalize(mixed, dim=-1) * anchors.norm(dim=-1, keepdim=True)
    return torch.where(mass[..., None] > 0, mixed, anchors)


def record(tokens: VisualTokens, contexts: Tensor, into: Tensor, layer: int) -> dict[str, Tensor]:
    """The trace with a stage added: `recovered_into` and `removed_at`, (B, N) each, -1 for patches still there."""
    gone = tokens.index.gather(1, contexts)  # (B, C) patch numbers
    empty = tokens.index.new_full((len(gone), tokens.patches), -1)
    into_patch = tokens.trace.get("recovered_into", empty).scatter(1, gone, tokens.index.gather(1, into))
    at = tokens.trace.get("removed_at", empty).scatter(1, gone, torch.full_like(gone, layer))
    return {**tokens.trace, "recovered_into": into_patch, "removed_at": at}


def taken_in(tokens: VisualTokens, anchors: Tensor, taken: Tensor) -> Tensor:
    """The trace's `recovered_mass` (B, N): what each patch has taken in so far and `taken` (B, A) now."""
    before = tokens.trace.get("recovered_mass", taken.new_zeros(len(taken), tokens.patches))
    return before.scatter_add(1, tokens.index.gather(1, anchors), taken)
