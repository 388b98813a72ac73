"""Prompts with images on their way through a decoder whose layers let visual tokens leave."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.decoder import DecoderPruner
from pruning.tokens import take


class Prompts:
    """B prompts with I images on their way through the layers; afterwards, what their cache holds.

    Args:
        owner: (I,) row of each image.
        place: (I, N) columns of its tokens.
        real: (B, L) bool: no padding.
        position: (B, L) position ids.
    """

    def __init__(self, owner: Tensor, place: Tensor, real: Tensor, position: Tensor) -> None:
        self.owner, self.place, self.real, self.position = owner, place, real, position
        self.length = real.shape[1]  # before any pruning
        self.index = torch.arange(place.shape[1], device=place.device).repeat(len(place), 1)  # (I, n), -1 merged
        self.stages: dict[int, Tensor] = {}  # layer -> (B, L') real columns of the cache from that layer on
        self.counts: list[int] = []  # visual tokens of an image that each layer processed
        self.asking: Tensor | None = None  # (I, R) text rows that rank, right-aligned
        self.score: Tensor | None = None  # (I, n)

    @property
    def average(self) -> float:
        """Visual tokens of an image, mean over the layers."""
        return sum(self.counts) / len(self.counts)

    def text_after_images(self) -> Tensor:
        """(B, L) bool: real places behind a row's last image; at least the prompt's last."""
        last = torch.full((len(self.real),), -1, device=self.place.device)
        last = last.scatter_reduce(0, self.owner, self.place.amax(1), "amax")
        text = self.real & (torch.arange(self.length, device=last.device) > last[:, None])
        text[:, -1] = True
        return text

    def shrink(self, hidden: Tensor, pruner: DecoderPruner, keep: int) -> Tensor:
        """One stage: states (B, L, D) -> (B, L', D), left-padded again."""
        assert self.score is not None
        rows = self.owner[:, None]
        states = hidden[rows, self.place]  # (I, n, D)
        slots, merged = pruner.shrink(states, self.score, keep)
        kept, stay = take(states, slots), slots.shape[1]
        old = self.position[rows, self.place.gather(1, slots)]
        self.index = self.index.gather(1, slots)
        if merged is not None:
            kept = torch.cat([kept, merged], 1)
            self.index = nn.functional.pad(self.index, (0, merged.shape[1]), value=-1)
        front = self.place[:, : kept.shape[1]]  # what stays moves to the front of its image's places
        hidden, position, real = hidden.clone(), self.position.clone(), self.real.clone()
        hidden[rows, front] = kept
        position[rows, front[:, :stay]] = old
        real[rows, self.place[:, kept.shape[1] :]] = False
        count = real.sum(1, keepdim=True)
        length = int(count.max())
        order = real.long().argsort(dim=1, stable=True)[:, -length:]  # padding first, the rest as before
        self.place = (real.cumsum(1) - 1 + length - count)[rows, front]
        self.real = real.gather(1, order)
        renumbered = (self.real.long().cumsum(1) - 1).clamp(min=0)
        self.position = renumbered if pruner.renumbers else position.gather(1, order)
        return take(hidden, order)
