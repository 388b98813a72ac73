"""ACGR, Anchor-Context Graph Recovery: inside the tower, the tokens that stay take in what the leaving ones hold.

DCP-Prune's first stage (arXiv 2606.16633, overview figure). From the paper: tokens are scored and partitioned into
anchors and contexts, progressively at intermediate layers; a bipartite context-to-anchor graph is built from semantic
and spatial similarity; anchors recover context information along its edges; the contexts are removed. Every formula,
every default and the places in the tower are a *reconstruction*, each with its switch in the YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.cls_attention import ClsAttention
from pruning.errors import InputError
from pruning.ops import centres, cosine, top
from pruning.tokens import VisualTokens, take

SHAPES = ("geometric", "linear")


@dataclass
class Acgr(ClsAttention):
    """Recovery inside the tower, then the top-K of the CLS attention among the survivors.

    Writes into `tokens.trace`: `removed_at` (B, N) the block after which a patch left and `recovered_into` (B, N)
    the anchor patch of its heaviest edge, -1 where it did not leave; into `tokens.carried`: `recovered_mass` (B, n),
    the edge weight that each token has taken in so far.

    Raises:
        InputError: a hyper-parameter out of range.
    """

    layers: Sequence[float] = (0.4, 0.6, 0.8)
    shape: str = "geometric"
    survivors: float = 4.0
    least: int = 64
    neighbours: int = 4
    semantic: bool = True
    spatial: bool = True
    tau: float = 0.1
    sigma: float = 0.1
    lam: float = 0.5
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or any(x < 0 or (x != int(x) and x > 1) for x in self.layers):
            raise InputError(f"layers must be fractions below 1 or block numbers from 0, got {list(self.layers)}")
        if self.shape not in SHAPES:
            raise InputError(f"shape must be one of {', '.join(SHAPES)}, got '{self.shape}'")
        if self.survivors < 1 or self.neighbours < 1:
            raise InputError(f"survivors and neighbours must be at least 1, got {self.survivors}, {self.neighbours}")
        if self.tau <= 0 or self.sigma <= 0 or not 0 <= self.lam <= 1:
            raise InputError(
                f"tau and sigma must be positive and lam in [0, 1], got {self.tau}, {self.sigma}, {self.lam}"
            )
        if not (self.semantic or self.spatial):
            raise InputError("the graph needs a term: set semantic or spatial; to switch recovery off, set lam=0")

    def schedule(self, depth: int, n: int) -> dict[int, int]:
        """*Reconstruction*: from N down to `survivors` x K (at least `least`) by equal ratios or differences."""
        blocks = blocks_of(self.layers, depth)
        keep = min(n, max(round(self.survivors * self.keeps(n)), self.least))
        counts = decreasing(n, keep, len(blocks), self.shape)
        before = [n, *counts]
        return {block: m for block, m, old in zip(blocks, counts, before) if m < old}

    def reduce_at(self, layer: int, tokens: VisualTokens, keep: int) -> VisualTokens:
        anchors, contexts = partition(self.score(tokens, None), keep)  # (B, A), (B, C) slots
        x, place = tokens.hidden.float(), centres(tokens.index, tokens.grid)
        weights = context_graph(
            take(x, contexts), take(x, anchors), take(place, contexts), take(place, anchors), self.neighbours,
            self.tau if self.semantic else None, self.sigma if self.spatial else None,
        )  # (B, C, A)  # fmt: skip
        hidden = recover(take(x, anchors), take(x, contexts), weights, self.lam, self.renormalise)
        mass = weights.sum(1) + tokens.carried.get("recovered_mass", torch.zeros_like(x[..., 0])).gather(1, anchors)
        kept = tokens.gather(anchors)
        return replace(
            kept.with_hidden(hidden),
            carried={**kept.carried, "recovered_mass": mass},
            trace={**tokens.trace, **leaving(tokens, layer, contexts, anchors, weights)},
        )


def blocks_of(layers: Sequence[float], depth: int) -> list[int]:
    """Block numbers (0-based, ascending, distinct): whole numbers as they are, a fraction f as round(f * depth) - 1.

    Raises:
        InputError: a block number that this tower does not have.
    """
    blocks = [int(x) if x == int(x) else max(0, round(x * depth) - 1) for x in layers]
    if max(blocks) >= depth:
        raise InputError(f"layers must lie below {depth}, the blocks of this tower that run; got {list(layers)}")
    return sorted(set(blocks))


def decreasing(n: int, keep: int, steps: int, shape: str) -> list[int]:
    """Counts after each of `steps` cuts from `n` to `keep`: equal ratios (geometric) or differences (linear)."""
    parts = [(j + 1) / steps for j in range(steps)]
    if shape == "linear":
        return [round(n + (keep - n) * part) for part in parts]
    return [round(n * (keep / n) ** part) for part in parts]


def partition(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Step 1: the `keep` best of score (B, n) are anchors, the rest contexts; slots (B, A), (B, C), ascending."""
    order = top(score, score.shape[1])
    return order[:, :keep].sort(1).values, order[:, keep:].sort(1).values


def context_graph(
    contexts: Tensor,
    anchors: Tensor,
    context_place: Tensor,
    anchor_place: Tensor,
    neighbours: int,
    tau: float | None,
    sigma: float | None,
) -> Tensor:
    """Step 2 (*reconstruction*): edge weights (B, C, A), rows sum to 1, at most `neighbours` edges a row.

    w_ca ~ exp(cos(x_c, x_a) / tau - |p_c - p_a|^2 / (2 sigma^2)) over each context's strongest anchors, from tokens
    (B, C, D), (B, A, D) and patch centres (B, C, 2), (B, A, 2) in [0, 1]^2. A term is off where its scale is None.
    """
    logits = contexts.new_zeros(len(contexts), contexts.shape[1], anchors.shape[1])
    if tau is not None:
        logits = logits + cosine(contexts, anchors) / tau
    if sigma is not None:
        apart = (context_place[:, :, None] - anchor_place[:, None]).square().sum(-1)
        logits = logits - apart / (2 * sigma**2)
    edges = top(logits, neighbours)  # (B, C, r)
    return torch.zeros_like(logits).scatter(2, edges, logits.gather(2, edges).softmax(-1))


def recover(anchors: Tensor, contexts: Tensor, weights: Tensor, lam: float, renormalise: bool) -> Tensor:
    """Step 3 (*reconstruction*): x_a <- (1 - beta_a) x_a + beta_a m_a, from (B, A, D), (B, C, D), (B, C, A).

    m_a is the mean of the anchor's contexts by edge weight, M_a their total weight, beta_a = lam M_a / (1 + M_a).
    `renormalise` gives the anchor its old length. An anchor without edges stays bit for bit what it was.
    """
    mass = weights.sum(1)[..., None]  # (B, A, 1)
    mean = (weights.mT @ contexts) / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    beta = lam * mass / (1 + mass)
    out = (1 - beta) * anchors + beta * mean
    if renormalise:
        length = out.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(out.dtype).tiny)
        out = out * (anchors.norm(dim=-1, keepdim=True) / length)
    return torch.where(mass > 0, out, anchors)


def leaving(
    tokens: VisualTokens, layer: int, contexts: Tensor, anchors: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Step 4's record by patch, (B, N) each: when it left, and to which anchor patch most of it went."""
    nowhere = tokens.index.new_full((len(tokens.index), tokens.patches), -1)
    gone = tokens.index.gather(1, contexts)  # (B, C) patches
    into = tokens.index.gather(1, anchors).gather(1, weights.argmax(2))
    return {
        "removed_at": tokens.trace.get("removed_at", nowhere).scatter(1, gone, layer),
        "recovered_into": tokens.trace.get("recovered_into", nowhere).scatter(1, gone, into),
    }
