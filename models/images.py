"""Images on their way to the tower: made into pixels ahead of time, or not at all where the cache knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Prepared:
    """One image: its fingerprint, and its pixels (1, 3, H, W) or what makes them."""

    seed: int
    pixels: Tensor | Callable[[], Tensor]

    def read(self) -> Tensor:
        """(1, 3, H, W) on the CPU."""
        return self.pixels if isinstance(self.pixels, Tensor) else self.pixels()


class Pixels:
    """The pixels of a batch of prepared images, put together when first read."""

    def __init__(self, images: list[Prepared], device: torch.device) -> None:
        self.images, self.device = images, device

    @property
    def seed(self) -> Tensor:
        """(B,) int64 fingerprints, on the CPU."""
        return torch.tensor([image.seed for image in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice | list[int]) -> Pixels:
        """Some of the images."""
        chosen = self.images[which] if isinstance(which, slice) else [self.images[b] for b in which]
        return Pixels(chosen, self.device)

    def read(self) -> Tensor:
        """(B, 3, H, W)."""
        return torch.cat([image.read() for image in self.images]).to(self.device, non_blocking=True)


def fingerprint(pixels: Tensor | Pixels) -> Tensor:
    """(B, ...) -> (B,) int64 on the CPU: equal for equal images, whatever the batch."""
    if isinstance(pixels, Pixels):
        return pixels.seed
    rows = pixels.detach().float().cpu().contiguous()
    digests = [hashlib.blake2b(row.numpy(), digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(d, "little") % 2**62 for d in digests])


def read(pixels: Tensor | Pixels) -> Tensor:
    """(B, 3, H, W)."""
    return pixels.read() if isinstance(pixels, Pixels) else pixels
