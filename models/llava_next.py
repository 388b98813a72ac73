"""LLaVA-NeXT in the same wrapper: an image is several crops, and rows of a batch differ in visual length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models.crops import Crops, Kept
from models.images import fingerprint
from models.llava import Answer, Llava
from models.shape import check_budget
from pruning.base import Pruner
from pruning.errors import InputError


@dataclass(frozen=True)
class CropPixels:
    """Pixels of a batch of images, whose numbers of crops differ."""

    crops: list[Tensor]  # (C_i, 3, H, W)
    sizes: list[tuple[int, int]]  # (height, width) before processing


class LlavaNext(Llava):
    """A loaded LLaVA-NeXT with its processor; `budget` is the total over five crops, each gets a fifth.

    Args:
        newline, unpad: how pruned crops are packed (`models.crops.Crops`).
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        prompt: str,
        cache_bytes: int = 768 * 2**20,
        newline: str = "drop",
        unpad: bool = True,
    ) -> None:
        super().__init__(model, processor, prompt, cache_bytes)
        self.crops = Crops(model, self.tower, newline, unpad)

    @property
    def visual_tokens(self) -> int:
        return self.crops.total

    def prepare(self, name: str, image: Image.Image) -> Image.Image:
        """The image itself: its crops are made when it is answered."""
        return image

    def pixels(self, images: list[Image.Image]) -> CropPixels:  # type: ignore[override]
        """PIL images -> their crops; no crop of zeros fills up the batch."""
        rgb = [image.convert("RGB") for image in images]
        out = self.processor.image_processor(images=rgb, return_tensors="pt")
        sizes = [(int(h), int(w)) for h, w in out["image_sizes"]]
        pixels = [own[: self.crops.number(size)].to(self.device) for own, size in zip(out["pixel_values"], sizes)]
        return CropPixels(pixels, sizes)

    def expect(self, pruner: Pruner) -> None:
        share = self.crops.share(pruner)
        self.tower.remembered = set() if share is None else self.tower.places(share)

    @torch.no_grad()
    def prune(  # type: ignore[override]
        self, pixels: CropPixels, pruner: Pruner, questions: list[list[str]] | None = None
    ) -> list[Kept]:
        """Kept tokens before the projector: one entry an image, or a question where the method reads the question.

        Raises:
            InputError: the method cannot reach its budget on this model, or reads the question and gets none.
        """
        layers = self.model.config.text_config.num_hidden_layers
        check_budget(pruner, self.visual_tokens, layers, self.crops.most)
        asked = question = None
        if self.by_question(pruner):
            if questions is None:
                raise InputError(f"{type(pruner).__name__} reads the question: give the questions of each image")
            with self.stage("selection"):
                asked, question = [len(q) for q in questions], self.read([q for own in questions for q in own])
        return self.crops.prune(pixels.crops, pixels.sizes, pruner, asked, question, self.stage)

    def project(self, tokens: list[Kept]) -> list[Tensor]:  # type: ignore[override]
        """Packed visual tokens of each row, (K_i, D_llm) in the language model's dtype."""
        return [features.to(self.embed.weight.dtype) for features in self.crops.project(tokens)]

    def _seeds(self, tokens: list[Kept], pixels: CropPixels, image_of_row: list[int]) -> list[int]:  # type: ignore[override]
        return [hash(tuple(fingerprint(own).tolist())) for own in pixels.crops]

    def _full_sets(self, pixels: CropPixels, which: list[int], seeds: list[int]) -> list[Tensor]:  # type: ignore[override]
        return self.crops.full([pixels.crops[b] for b in which], [pixels.sizes[b] for b in which])

    def _sets(self, tokens: list[Kept]) -> list[Tensor]:  # type: ignore[override]
        return [row.hidden for row in tokens]

    def _answer(  # type: ignore[override]
        self, text: str, logits: Tensor, tokens: list[Kept], row: int, shifts: dict[str, float]
    ) -> Answer:
        index = self.crops.index(tokens[row]).tolist()
        return self._checked(text, logits, tokens[row].hidden, index, shifts, tokens[row].trace)
