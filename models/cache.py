"""A cache of what the tower made of images, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

SLAB_BYTES = 33 * 2**20  # the C library maps blocks above 32 MB apart from its heap


class StateCache:
    """Store under (image, place), of tower states and of what is derived from them; one cache to a loaded model.

    `image` is the fingerprint of the pixels, `place` the number of the block whose input is stored (the depth of
    the tower stands for its output) or a name. A sweep asks for the same images point after point, more of them
    perhaps than there is room for; throwing out the oldest would then lose each image shortly before its turn. So a
    full cache refuses newcomers, except in place of what neither this `turn` nor the last one read.
    """

    def __init__(self, max_bytes: int = 768 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._turn = 0
        self._store: OrderedDict[tuple[int, int | str], tuple[Any, int, int]] = OrderedDict()  # value, bytes, turn
        self._free: dict[tuple[tuple[int, ...], torch.dtype, torch.device], list[Tensor]] = {}

    def turn(self) -> None:
        """A new pass over images begins: what it does not read may go after it."""
        self._turn += 1

    def has(self, image: int, place: int | str) -> bool:
        """Whether there is a value, without reading it."""
        return (image, place) in self._store

    def get(self, image: int, place: int | str) -> Any:
        """The state (1 + N, D), or what else was put there; None where nothing is. Do not write into it."""
        found = self._store.get((image, place))
        if found is None:
            return None
        self._store[image, place] = (found[0], found[1], self._turn)
        self._store.move_to_end((image, place))
        return found[0]

    def put(self, image: int, place: int | str, value: Tensor | Any, size: int | None = None) -> None:
        """Keeps a copy of a state (1 + N, D), or any value of `size` bytes as it is, if there is room."""
        if isinstance(value, Tensor) and size is None:
            size = value.numel() * value.element_size()
        if self.has(image, place) or not self._room(size):
            return
        if isinstance(value, Tensor):
            with torch.inference_mode(False), torch.no_grad():  # whatever mode the caller is in: others will read it
                value = self._slot(value).copy_(value)
        self._store[image, place] = (value, size, self._turn)
        self.bytes += size

    def _slot(self, like: Tensor) -> Tensor:
        """Uninitialised memory for one state, from a slab of many.

        States allocated one by one between the tower's temporaries would leave holes in the heap that nothing fits.
        """
        free = self._free.setdefault((tuple(like.shape), like.dtype, like.device), [])
        if not free:
            count = -(-SLAB_BYTES // max(1, like.numel() * like.element_size()))
            free += like.new_empty((count, *like.shape)).unbind()
        return free.pop()

    def _room(self, size: int) -> bool:
        """Makes room for `size` bytes from what neither this turn nor the one before read; whether there is enough.

        Room for two, turn 1 asks for A, B, C: A and B stay, C is refused; so in turn 2, which reads A and B again.
        Turn 3 asks for C alone: A and B were read in turn 2, C is refused. In turn 4 A gives way to C.
        """
        while self.bytes + size > self.max_bytes and self._store:
            oldest, (_, gone, turn) = next(iter(self._store.items()))
            if turn >= self._turn - 1:
                return False
            value = self._store.pop(oldest)[0]
            self.bytes -= gone
            if isinstance(value, Tensor):
                self._free[tuple(value.shape), value.dtype, value.device].append(value)
        return self.bytes + size <= self.max_bytes

    def clear(self) -> None:
        """Forgets everything."""
        self._store.clear()
        self._free.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._store)
