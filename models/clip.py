"""CLIP's text tower beside a LLaVA, for the methods that compare patches with the question in CLIP's joint space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.vision_tower import VisionTower
from pruning.errors import InputError


def load_clip(name: str, tower: VisionTower, like: Tensor) -> Callable[[list[str]], Tensor]:
    """The text tower of the CLIP that a LLaVA's tower comes from; its visual projection goes to the tower.

    Args:
        name: folder or hub name of a whole CLIP, e.g. `openai/clip-vit-large-patch14-336` for LLaVA-1.5 and NeXT.
        tower: its `clip_projection` is set.
        like: a weight of the model, for device and dtype.

    Returns:
        A function from B texts to their vectors (B, 1, D_clip).

    Raises:
        InputError: it cannot be loaded, or its tower has another width.
    """
    from transformers import AutoTokenizer, CLIPModel

    if not Path(name).exists():
        from models.hub import missing_model

        if line := missing_model(name, "model.clip_text"):
            raise InputError(line)
    try:
        clip = CLIPModel.from_pretrained(name, dtype=like.dtype).eval().to(like.device)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load CLIP '{name}': {str(error).strip().splitlines()[0]}") from error
    width, wanted = clip.visual_projection.in_features, tower.clip.config.hidden_size
    if width != wanted:
        raise InputError(f"CLIP '{name}' has a tower of width {width}, expected {wanted}, the tower of this LLaVA")
    longest = clip.config.text_config.max_position_embeddings

    @torch.no_grad()
    def vectors(texts: list[str]) -> Tensor:
        """Texts -> (B, 1, D_clip); what is longer than the tower reads is cut, as TRIM's official code does."""
        cut = {"padding": True, "truncation": True, "max_length": longest}
        ids = tokenizer(texts, **cut, return_tensors="pt").to(like.device)
        read = clip.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
        return clip.text_projection(read.pooler_output)[:, None]

    tower.clip_projection = clip.visual_projection
    return vectors
