"""CLIP's text tower beside a LLaVA, for the methods that compare patches with the question in CLIP's joint space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.errors import InputError


def attach_clip(llava: Any, name: str) -> None:
    """Gives a `Llava` the text tower and the visual projection of the CLIP its own tower comes from.

    Args:
        llava: a loaded model; `clip_text` and `tower.clip_projection` are set.
        name: folder or hub name of a whole CLIP, e.g. `openai/clip-vit-large-patch14-336` for LLaVA-1.5 and NeXT.

    Raises:
        InputError: it cannot be loaded, or its tower has another width.
    """
    from transformers import AutoTokenizer, CLIPModel

    if not Path(name).exists():
        from models.hub import missing_model

        if line := missing_model(name, "model.clip_text"):
            raise InputError(line)
    try:
        clip = CLIPModel.from_pretrained(name, dtype=llava.embed.weight.dtype).eval().to(llava.device)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load CLIP '{name}': {str(error).strip().splitlines()[0]}") from error
    width, wanted = clip.visual_projection.in_features, llava.tower.clip.config.hidden_size
    if width != wanted:
        raise InputError(f"CLIP '{name}' has a tower of width {width}, expected {wanted}, the tower of this LLaVA")
    longest = clip.config.text_config.max_position_embeddings

    @torch.no_grad()
    def vectors(texts: list[str]) -> Tensor:
        """Texts -> (B, 1, D_clip); what is longer than the tower reads is cut, as TRIM's official code does."""
        cut = {"padding": True, "truncation": True, "max_length": longest}
        ids = tokenizer(texts, **cut, return_tensors="pt").to(llava.device)
        read = clip.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
        return clip.text_projection(read.pooler_output)[:, None]

    llava.clip_text = vectors
    llava.tower.clip_projection = clip.visual_projection
