"""`with pruner(model):` on an unmodified Hugging Face LLaVA.

Inside the context the model's `generate` and `forward` accept what the processor made (576 image placeholders):
the placeholders are shortened to K, `get_image_features` returns the K pruned tokens, everything else is the
model's own code. The three names are set on the instance and removed on exit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.text import read_questions, strip_template
from models.vision_tower import VisionTower
from pruning.base import Pruner
from pruning.errors import InputError


@contextmanager
def attach(model: nn.Module, pruner: Pruner, tokenizer: Any = None) -> Iterator[nn.Module]:
    """Prune the model's visual tokens inside the `with` block.

    Args:
        model: a `LlavaForConditionalGeneration`.
        pruner: any method with a budget.
        tokenizer: only for methods that read the question; by default the one saved beside the model.

    Raises:
        InputError: not a LLaVA, already inside such a block, or the budget does not fit.
    """
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(inner, "multi_modal_projector"):
        raise InputError(f"expected a LlavaForConditionalGeneration, got {type(model).__name__}")
    if "generate" in vars(model):
        raise InputError("this model is already inside a `with pruner(model)` block; leave it first")
    call = _Call(model, pruner, tokenizer)
    model.generate = call.generate(model.generate)  # type: ignore[method-assign]
    model.forward = call.forward(model.forward)  # type: ignore[method-assign]
    inner.get_image_features = call.features(inner.get_image_features)
    try:
        yield model
    finally:
        del model.generate, model.forward, inner.get_image_features


class _Call:
    """The state of one `with` block: which question the running call asks."""

    def __init__(self, model: nn.Module, pruner: Pruner, tokenizer: Any) -> None:
        self.model, self.pruner, self.tokenizer = model, pruner, tokenizer
        self.tower = VisionTower(model)
        self.keep = pruner.keeps(self.tower.patches)
        self.image_token = model.config.image_token_id
        self.ids: Tensor | None = None  # (B, L) shortened prompt of the running call

    def shorten(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Drop all but K placeholders of each image: (B, L) -> (B, L'), left-padded, and its mask."""
        n = self.tower.patches
        mask = torch.ones_like(ids) if mask is None else mask
        image = ids == self.image_token
        if (image.sum(1) % n).any():
            counts = image.sum(1).tolist()
            raise InputError(f"each image needs {n} placeholders, the prompts hold {counts}")
        rank = (image.cumsum(1) - 1) % n  # place within its own image
        stays = (~image | (rank < self.keep)) & mask.bool()
        length = int(stays.sum(1).max())
        pad = self.model.config.pad_token_id or 0
        short, short_mask = ids.new_full((len(ids), length), pad), mask.new_zeros(len(ids), length)
        for row in range(len(ids)):
            kept = ids[row, stays[row]]
            short[row, length - len(kept) :] = kept
            short_mask[row, length - len(kept) :] = 1
        return short, short_mask

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`generate` that returns the caller's own prompt in front of the new tokens, as without pruning."""

        @functools.wraps(original)
        def wrapped(inputs: Tensor | None = None, **kwargs: Any) -> Any:
            ids = kwargs.pop("input_ids", inputs)
            if ids is None or kwargs.get("pixel_values") is None or self.keep == self.tower.patches:
                return original(ids, **kwargs) if ids is not None else original(**kwargs)
            short, kwargs["attention_mask"] = self.shorten(ids, kwargs.get("attention_mask"))
            self.ids = short
            try:
                out = original(short, **kwargs)
            finally:
                self.ids = None
            sequences = out if isinstance(out, Tensor) else out.sequences
            repeats = len(sequences) // len(ids)  # beams or samples returned for each prompt
            whole = torch.cat([ids.repeat_interleave(repeats, 0), sequences[:, short.shape[1] :]], 1)
            if isinstance(out, Tensor):
                return whole
            out.sequences = whole
            return out

        return wrapped

    def forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` on full prompts: shortens them first; logits are those of the shortened prompt."""

        @functools.wraps(original)
        def wrapped(input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
            direct = self.ids is None and input_ids is not None and pixel_values is not None
            if not direct or self.keep == self.tower.patches:
                return original(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
            input_ids, kwargs["attention_mask"] = self.shorten(input_ids, kwargs.get("attention_mask"))
            self.ids = input_ids
            try:
                return original(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
            finally:
                self.ids = None

        return wrapped

    def features(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`get_image_features` with the pruned tokens in place of all, in the container the version returns."""

        @functools.wraps(original)
        def wrapped(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.ids is None:
                return original(pixel_values, *args, **kwargs)
            visual = self._pruned(pixel_values)
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            rows = list(visual)
            return BaseModelOutputWithPooling(pooler_output=rows) if _returns_output(original) else rows

        return wrapped

    @torch.no_grad()
    def _pruned(self, pixels: Tensor) -> Tensor:
        """Pixels of the call's images (B, 3, H, W) -> (B, K, D_llm)."""
        tokens = self.tower.survivors(pixels, self.pruner)
        question = self._questions(len(pixels)) if self.pruner.reads_question else None
        tokens = self.pruner.finish(tokens, question)
        if tokens.count == 0:
            width = self.model.get_input_embeddings().weight.shape[1]
            return tokens.hidden.new_zeros(len(pixels), 0, width)
        return self.tower.projector(tokens.hidden)

    def _questions(self, images: int) -> Any:
        """The question of each image: the last user turn of the prompt that holds it."""
        assert self.ids is not None
        tokenizer = self.tokenizer or self._saved_tokenizer()
        counts = ((self.ids == self.image_token).sum(1) // max(self.keep, 1)).tolist()
        rows = [[t for t in row if t != self.image_token] for row in self.ids.tolist()]
        texts = [strip_template(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        asked = [text for text, n in zip(texts, counts) for _ in range(n)]
        if len(asked) != images:
            raise InputError(f"{images} images for prompts with {sum(counts)} images")
        return read_questions(asked, tokenizer, self.model.get_input_embeddings())

    def _saved_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        path = self.model.config._name_or_path
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{type(self.pruner).__name__} reads the question and no tokenizer lies beside the model "
                f"('{path}'); use models.attach.attach(model, pruner, tokenizer)"
            ) from error
        return self.tokenizer


def _returns_output(function: Callable[..., Any]) -> bool:
    """transformers 5 wraps the features in a model output, 4.57 returns the list itself."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5
