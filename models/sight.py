"""What `with pruner(model):` needs to know of a model's images: how many placeholders, and which features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.crops import Crops
from models.vision_tower import VisionTower
from pruning.base import Pruner
from pruning.tokens import Question

Size = tuple[int, int]  # height, width


class Squares:
    """LLaVA-1.5: every image is one square of N tokens, K of which are kept."""

    def __init__(self, model: nn.Module, pruner: Pruner) -> None:
        self.model, self.tower, self.pruner = model, VisionTower(model), pruner
        self.total = self.tower.patches
        self.keep = pruner.keeps(self.total)

    @property
    def identity(self) -> bool:
        """Whether nothing is pruned."""
        return self.keep == self.total

    def counts(self, size: Size) -> tuple[int, int]:
        """Placeholders of an image, as the processor makes them and as the language model will see them."""
        return self.total, self.keep

    def features(self, pixels: Tensor, sizes: list[Size], question: Question | None) -> list[Tensor]:
        """Pixels (I, 3, H, W) -> I times (K, D_llm)."""
        with torch.no_grad():  # the tower and the selection; the projector can be trained
            tokens = self.pruner.finish(self.tower.survivors(pixels, self.pruner), question)
        if tokens.count == 0:
            width = self.model.get_input_embeddings().weight.shape[1]
            return [tokens.hidden.new_zeros(0, width) for _ in range(len(pixels))]
        return list(self.tower.projector(tokens.hidden))


class CutSquares:
    """LLaVA-NeXT: an image is several crops; counts follow from its size."""

    def __init__(self, model: nn.Module, pruner: Pruner, **packing: Any) -> None:
        self.crops, self.pruner = Crops(model, VisionTower(model), **packing), pruner
        self.total = self.crops.total
        self.identity = self.crops.share(pruner) is None

    def counts(self, size: Size) -> tuple[int, int]:
        """Placeholders of an image, as the processor makes them and as the language model will see them."""
        return len(self.crops.frame(size, unpad=True).layout), self.crops.count(size, self.pruner)

    def features(self, pixels: Tensor, sizes: list[Size], question: Question | None) -> list[Tensor]:
        """Pixels (I, most crops, 3, H, W), filled up with zeros -> I times (K_i, D_llm)."""
        numbers = [self.crops.number(size) for size in sizes]
        own = [x[:n] for x, n in zip(pixels, numbers)] if pixels.ndim == 5 else list(pixels.split(numbers))
        asked = None if question is None else [1] * len(sizes)
        return self.crops.project(self.crops.prune(own, sizes, self.pruner, asked, question))


def sight(model: nn.Module, pruner: Pruner, **packing: Any) -> Squares | CutSquares:
    """The fitting one of the two."""
    if hasattr(model.config, "image_grid_pinpoints"):
        return CutSquares(model, pruner, **packing)
    return Squares(model, pruner)


def sizes_of(given: Any, images: int) -> list[Size]:
    """`image_sizes` of the processor as (height, width); made-up ones where the model takes none."""
    if given is None:
        return [(0, 0)] * images
    rows = given.tolist() if isinstance(given, torch.Tensor) else given
    return [(int(h), int(w)) for h, w in rows]
