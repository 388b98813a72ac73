"""What `with pruner(model):` needs to know of a model's images: how many placeholders, and which features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.crops import Crops
from models.shape import check_budget
from models.vision_tower import VisionTower
from pruning.base import Pruner
from pruning.errors import InputError
from pruning.tokens import Question

Size = tuple[int, int]  # height, width


class Squares:
    """LLaVA-1.5: every image is one square of N tokens, K of which are kept."""

    def __init__(self, model: nn.Module, pruner: Pruner) -> None:
        self.tower, self.pruner = VisionTower(model), pruner
        self.total = self.tower.patches
        check_budget(pruner, self.total, _layers(model))
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
        return list(self.tower.projector(tokens.hidden))


class CutSquares:
    """LLaVA-NeXT: an image is several crops; counts follow from its size."""

    def __init__(self, model: nn.Module, pruner: Pruner, **packing: Any) -> None:
        self.tower, self.pruner = VisionTower(model), pruner
        self.crops = Crops(model, self.tower, **packing)
        self.total = self.crops.total
        check_budget(pruner, self.total, _layers(model), self.crops.most)
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


def require_llava(model: nn.Module) -> None:
    """Raises InputError for what is no LLaVA with a CLIP tower and one layer of patches to read."""
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(inner, "multi_modal_projector"):
        raise InputError(f"expected a LlavaForConditionalGeneration, got {type(model).__name__}")
    tower, config = inner.vision_tower, model.config
    if not hasattr(getattr(tower, "vision_model", tower), "pre_layrnorm"):
        raise InputError(f"expected a LLaVA with a CLIP tower, got one with a {type(tower).__name__}")
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    if not isinstance(layer, int) or strategy != "default":
        raise InputError(
            "expected one vision_feature_layer and the strategy 'default' (patches without CLS), "
            f"got {layer} and {strategy!r}"
        )


def sight(model: nn.Module, pruner: Pruner, **packing: Any) -> Squares | CutSquares:
    """The fitting one of the two."""
    if hasattr(model.config, "image_grid_pinpoints"):
        return CutSquares(model, pruner, **packing)
    return Squares(model, pruner)


def _layers(model: nn.Module) -> int:
    return model.config.text_config.num_hidden_layers


def sizes_of(given: Any, images: int) -> list[Size]:
    """`image_sizes` of the processor as (height, width); made-up ones where the model takes none."""
    if given is None:
        return [(0, 0)] * images
    rows = given.tolist() if isinstance(given, torch.Tensor) else given
    return [(int(h), int(w)) for h, w in rows]
