"""A cache of tower states, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class StateCache:
    """Least-recently-used store of tensors under (image, place); one cache belongs to one loaded model.

    `image` is the fingerprint of the pixels, `place` the number of the block whose input is stored (the depth of
    the tower stands for its output). Tensors are kept as they are: do not write into them.
    """

    def __init__(self, max_bytes: int = 768 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._store: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def get(self, image: int, place: int) -> Tensor | None:
        """The state (1 + N, D), or None."""
        value = self._store.get((image, place))
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._store.move_to_end((image, place))
        return value

    def put(self, image: int, place: int, value: Tensor) -> None:
        """Store a state (1 + N, D); the least recently used ones leave when `max_bytes` would be passed."""
        size = value.numel() * value.element_size()
        if size > self.max_bytes:
            return
        old = self._store.pop((image, place), None)
        self.bytes += size - (0 if old is None else old.numel() * old.element_size())
        self._store[image, place] = value
        while self.bytes > self.max_bytes:
            _, gone = self._store.popitem(last=False)
            self.bytes -= gone.numel() * gone.element_size()

    def __len__(self) -> int:
        return len(self._store)
