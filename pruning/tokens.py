"""Visual tokens at one place of the vision tower, and the question they will answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Axis that runs over the tokens in each lazily read feature; None: one value an image, not a token.
TOKEN_AXIS: dict[str, int | None] = {
    "cls_attention": 2,  # (B, H, n)  softmax row of the CLS query in the block that made `hidden`, patches only
    "keys": 1,  # (B, n, D)  key projections of that block, heads concatenated
    "values": 1,  # (B, n, D)  value projections of that block
    "cls_value": None,  # (B, D)
    "next_keys": 1,  # (B, n, D)  key projections of the following block (PruMerge)
    "cls_next_key": None,  # (B, D)
    "cls_next_query": None,  # (B, D)
    "projected": 1,  # (B, n, D_llm)  after the multimodal projector
    "clip": 1,  # (B, n, D_clip)  CLIP's joint image-text space (or its stand-in)
}


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of `B` crops at one place of the tower.

    `features` maps a name of `TOKEN_AXIS` to a tensor or to a function without arguments that computes it;
    the function runs once, when a method first reads the feature. Features are returned in float32.
    A merged token keeps its anchor's features.
    """

    hidden: Tensor  # (B, n, D) in the model's dtype
    index: Tensor  # (B, n) int64: patch number in raster order, 0..N-1; a merged token's anchor; -1 no patch
    grid: tuple[int, int]  # rows, columns of the patch grid; N = rows * columns
    cls: Tensor | None = None  # (B, D) the CLS token at the same place
    size: Tensor | None = None  # (B, n) float32: patches averaged in each token (ToMe); None: all one
    seed: Tensor | None = None  # (B,) int64 fingerprint of each image's pixels
    features: Mapping[str, Tensor | Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    carried: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # name -> (B, n): state of a method
    trace: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # name -> (B, ...): what a method did
    _cache: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _source: tuple[VisualTokens, Tensor] | None = field(default=None, init=False, repr=False, compare=False)  # `rows`

    @property
    def count(self) -> int:
        """n, the number of tokens of each crop at this place."""
        return self.hidden.shape[1]

    @property
    def patches(self) -> int:
        """N, the number of patches of a crop before any pruning."""
        return self.grid[0] * self.grid[1]

    def has(self, name: str) -> bool:
        """Whether the feature can be read here."""
        return name in self.features

    def read(self, name: str) -> Tensor:
        """A feature of `TOKEN_AXIS` in float32, computed on first use.

        Raises:
            KeyError: this place of the tower does not offer the feature.
        """
        if name not in self._cache:
            if name not in self.features:
                raise KeyError(f"no feature '{name}' at this place of the tower; it offers {sorted(self.features)}")
            value = self.features[name]
            self._cache[name] = (value() if callable(value) else value).float()
        return self._cache[name]

    @property
    def cls_attention(self) -> Tensor:
        """(B, H, n) softmax row of the CLS query, patch columns only (they sum to less than 1)."""
        return self.read("cls_attention")

    @property
    def keys(self) -> Tensor:
        """(B, n, D) keys of the block that made `hidden`, heads concatenated, bias included, unscaled."""
        return self.read("keys")

    @property
    def mean_keys(self) -> Tensor:
        """(B, n, head size) those keys, averaged over heads."""
        return self.keys.unflatten(-1, (self.cls_attention.shape[1], -1)).mean(2)

    @property
    def projected(self) -> Tensor:
        """(B, n, D_llm) the tokens as the language model would see them."""
        return self.read("projected")

    def gather(self, chosen: Tensor) -> VisualTokens:
        """The tokens at slots `chosen` (B, k), in that order; features follow lazily."""

        def follow(name: str) -> Callable[[], Tensor]:
            axis = TOKEN_AXIS[name]
            return lambda: self.read(name) if axis is None else take(self.read(name), chosen, axis)

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.gather(1, chosen)

        return replace(
            self,
            hidden=take(self.hidden, chosen),
            index=self.index.gather(1, chosen),
            size=pick(self.size),
            features={name: follow(name) for name in self.features},
            carried={name: x.gather(1, chosen) for name, x in self.carried.items()},
        )

    def rows(self, which: Tensor) -> VisualTokens:
        """The tokens of crops `which` (R,) int64, repeats allowed: one crop can serve several questions."""
        source, of = self._source or (self, None)
        at = which if of is None else of[which]

        def follow(name: str) -> Callable[[], Tensor]:
            return lambda: source.read(name)[at]

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[which]

        out = replace(
            self,
            hidden=self.hidden[which],
            index=self.index[which],
            cls=pick(self.cls),
            size=pick(self.size),
            seed=None if self.seed is None else self.seed[which.to(self.seed.device)],  # on the CPU
            features={name: follow(name) for name in self.features},
            carried={name: x[which] for name, x in self.carried.items()},
            trace={name: x[which] for name, x in self.trace.items()},
        )
        object.__setattr__(out, "_source", (source, at))  # lost, as it must be, by whatever changes the tokens
        return out

    def once(self, make: Callable[[VisualTokens], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What does not depend on the question, made once a crop: tensors (B, ...), then a row for each of these.

        Where the rows are those of `rows`, `make` gets the crops that they came from: it must not read the question.
        """
        if self._source is None:
            return make(self)
        source, at = self._source
        return tuple(x[at] for x in make(source))

    def with_hidden(self, hidden: Tensor) -> VisualTokens:
        """The same tokens with new hidden states (B, n, D), cast to the old dtype.

        `projected` and `clip` are functions of the hidden states, so they are dropped; the runner adds them again.
        """
        kept = {name: f for name, f in self.features.items() if name not in ("projected", "clip")}
        out = replace(self, hidden=hidden.to(self.hidden.dtype), features=kept)
        out._cache.update({name: x for name, x in self._cache.items() if name in kept})
        return out

    def with_cls(self) -> VisualTokens:
        """The same tokens behind the CLS token, which has no patch: (B, n, D) -> (B, 1 + n, D), index -1 in front.

        Features and carried state belong to patches and are dropped.

        Raises:
            KeyError: this place of the tower does not offer the CLS token.
        """
        if self.cls is None:
            raise KeyError("no CLS token at this place of the tower")
        return replace(
            self,
            hidden=torch.cat([self.cls[:, None].to(self.hidden.dtype), self.hidden], 1),
            index=F.pad(self.index, (1, 0), value=-1),
            size=None if self.size is None else F.pad(self.size, (1, 0), value=1.0),
            features={},
            carried={},
        )

    def raster(self) -> VisualTokens:
        """The same tokens sorted by patch number; tokens without a patch (-1) come first."""
        order = self.index.argsort(dim=1, stable=True)
        there = torch.arange(self.count, device=order.device).expand_as(order)
        if order.device.type == "cpu" and torch.equal(order, there):  # a GPU would have to be waited for
            return self
        return self.gather(order)


@dataclass(frozen=True)
class Question:
    """The question of each of `B` crops, for text-aware methods. No chat template, no special tokens."""

    embeddings: Tensor  # (B, T, D_llm) the language model's input embeddings of the question's tokens
    mask: Tensor  # (B, T) bool: real tokens
    content: Tensor  # (B, T) bool: content words (no stop words, no punctuation); may be empty for a row
    clip: Tensor | None = None  # (B, M, D_clip) text vectors in CLIP's joint space, or their stand-in
    clip_is_real: bool = False  # `clip` comes from the CLIP text tower, not from a stand-in

    def rows(self, which: Tensor) -> Question:
        """The questions `which` (R,) int64."""
        clip = None if self.clip is None else self.clip[which]
        return replace(
            self, embeddings=self.embeddings[which], mask=self.mask[which], content=self.content[which], clip=clip
        )


def concatenate(parts: list[VisualTokens]) -> VisualTokens:
    """Joins crops along the batch; all parts must hold equally many tokens."""
    first = parts[0]

    def joined(name: str) -> Tensor:
        return torch.cat([part.read(name) for part in parts])

    def stack(values: list[Tensor | None]) -> Tensor | None:
        return None if values[0] is None else torch.cat(values)  # type: ignore[arg-type]

    return replace(
        first,
        hidden=torch.cat([part.hidden for part in parts]),
        index=torch.cat([part.index for part in parts]),
        cls=stack([part.cls for part in parts]),
        size=stack([part.size for part in parts]),
        seed=stack([part.seed for part in parts]),
        features={name: (lambda name=name: joined(name)) for name in first.features},
        carried={name: torch.cat([part.carried[name] for part in parts]) for name in first.carried},
        trace={name: torch.cat([part.trace[name] for part in parts]) for name in first.trace},
    )


def take(x: Tensor, chosen: Tensor, axis: int = 1) -> Tensor:
    """Gather slots `chosen` (B, k) along the token axis of `x` (B, ..., n, ...)."""
    if axis == 1:  # whole rows: several times faster than `gather`, which looks up each number
        return x[torch.arange(len(x), device=x.device)[:, None], chosen]
    shape = [1] * x.ndim
    shape[0], shape[axis] = chosen.shape
    return x.gather(axis, chosen.view(shape).expand([s if i != axis else -1 for i, s in enumerate(x.shape)]))
