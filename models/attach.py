"""`with pruner(model):` on an unmodified Hugging Face LLaVA or LLaVA-NeXT.

Inside the context the model's `generate` and `forward` accept what the processor made (576 image placeholders):
the placeholders are shortened to K, `get_image_features` returns the K pruned tokens, everything else is the
model's own code. The three names are set on the instances and put back on exit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.decoder import inside
from models.sight import CutSquares, sight, sizes_of
from models.text import read_questions, strip_template
from pruning.base import Pruner
from pruning.decoder import DecoderPruner
from pruning.errors import InputError


@contextmanager
def attach(model: nn.Module, pruner: Pruner, tokenizer: Any = None, **packing: Any) -> Iterator[nn.Module]:
    """Prune the model's visual tokens inside the `with` block.

    Args:
        model: a `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.
        pruner: any method with a budget.
        tokenizer: only for methods that read the question; by default the one saved beside the model.
        packing: `newline` and `unpad` of LLaVA-NeXT (`models.crops.Crops`).

    Raises:
        InputError: not a LLaVA, already inside such a block, or the budget does not fit.
    """
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(inner, "multi_modal_projector"):
        raise InputError(f"expected a LlavaForConditionalGeneration, got {type(model).__name__}")
    if hasattr(vars(inner).get("get_image_features"), "pruned"):
        raise InputError("this model is already inside a `with pruner(model)` block; leave it first")
    call = _Call(model, pruner, tokenizer, packing)
    with ExitStack() as stack:
        stack.enter_context(inside(model, pruner, call.sight.total))
        stack.enter_context(_replaced(model, "generate", call.generate(model.generate)))
        stack.enter_context(_replaced(model, "forward", call.forward(model.forward)))
        stack.enter_context(_replaced(inner, "get_image_features", call.features(inner.get_image_features)))
        yield model


@contextmanager
def _replaced(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An instance attribute for the time of the block; what hid the class's own before (a hook) comes back."""
    old = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if old is not None:
            setattr(owner, name, old)


class _Call:
    """The state of one `with` block: which prompts the running call holds."""

    def __init__(self, model: nn.Module, pruner: Pruner, tokenizer: Any, packing: dict[str, Any]) -> None:
        self.model, self.pruner, self.tokenizer = model, pruner, tokenizer
        self.sight = sight(model, pruner, **packing)
        if isinstance(self.sight, CutSquares) and isinstance(pruner, DecoderPruner):
            raise InputError(f"{type(pruner).__name__} prunes inside the language model: for LLaVA-1.5 only")
        self.image_token = model.config.image_token_id
        self.ids: Tensor | None = None  # (B, L') shortened prompts of the running call
        self.owner: list[int] = []  # the row of each of their images

    # --- prompts ----------------------------------------------------------------------------------------
    def shorten(self, counts: list[tuple[int, int]], ids: Tensor, *beside: tuple[Tensor, int]) -> list[Tensor]:
        """Drop all but K placeholders of each image and pad left: (B, L) -> (B, L').

        Args:
            counts: placeholders of each image, now and afterwards.
            beside: tensors (B, L) that follow the ids, with the value of their padding; the first is the mask.

        Returns:
            The ids and those tensors.
        """
        stays = self._staying(ids, counts) & beside[0][0].bool()
        length = int(stays.sum(1).max())
        out = []
        for x, pad in [(ids, self.model.config.pad_token_id or 0), *beside]:
            short = x.new_full((len(ids), length), pad)
            for row in range(len(ids)):
                kept = x[row, stays[row]]
                short[row, length - len(kept) :] = kept
            out.append(short)
        return out

    def _staying(self, ids: Tensor, counts: list[tuple[int, int]]) -> Tensor:
        """(B, L) bool; notes the row of each image."""
        stays, self.owner, image = torch.ones_like(ids, dtype=torch.bool), [], 0
        for row, own in enumerate(ids == self.image_token):
            places = own.nonzero()[:, 0]
            start = 0
            while start < len(places) and image < len(counts) and start + counts[image][0] <= len(places):
                full, kept = counts[image]
                stays[row, places[start + kept : start + full]] = False
                start, image = start + full, image + 1
                self.owner.append(row)
            if start < len(places):
                wanted = f"{counts[image][0]} for its image {image}" if image < len(counts) else "none more"
                raise InputError(f"prompt {row} holds {len(places) - start} image placeholders, expected {wanted}")
        if image < len(counts):
            raise InputError(f"{len(counts)} images, but the prompts hold placeholders for {image}")
        return stays

    # --- the three replacements -------------------------------------------------------------------------
    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`generate` that returns the caller's own prompt in front of the new tokens, as without pruning."""

        @functools.wraps(original)
        def wrapped(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            ids, pixels = kwargs.pop("input_ids", inputs), kwargs.get("pixel_values")
            if pixels is None or self.sight.identity:
                return original(*args, **kwargs) if ids is None else original(ids, *args, **kwargs)
            if ids is None:
                raise InputError("give generate input_ids: embeddings do not tell where the images are")
            short, mask = self._prepare(ids, pixels, kwargs)
            kwargs["attention_mask"] = mask
            self._refuse_mixed_beams(args, kwargs)
            for name in ("max_length", "min_length"):  # they count the prompt as the caller sees it
                if kwargs.get(name) is not None:
                    kwargs[name] -= ids.shape[1] - short.shape[1]
            try:
                out = original(short, *args, **kwargs)
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

    def _prepare(self, ids: Tensor, pixels: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Shortened ids and mask; labels in `kwargs` follow."""
        if kwargs.get("position_ids") is not None:
            raise InputError("leave position_ids out: those of the pruned prompt are made from the attention mask")
        given, mask = kwargs.get("image_sizes"), kwargs.get("attention_mask")
        sizes = sizes_of(given, len(pixels) if given is None else len(given))
        beside = [(torch.ones_like(ids) if mask is None else mask, 0)]
        if kwargs.get("labels") is not None:
            beside.append((kwargs["labels"], -100))
        self.ids, mask, *labels = self.shorten([self.sight.counts(size) for size in sizes], ids, *beside)
        if labels:
            kwargs["labels"] = labels[0]
        return self.ids, mask

    def _refuse_mixed_beams(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """transformers repeats images one by one for beams, which fits prompts of at most one image only."""
        config = args[0] if args else kwargs.get("generation_config") or self.model.generation_config
        names = ("num_beams", "num_return_sequences")
        repeats = max(kwargs.get(name) or getattr(config, name, None) or 1 for name in names)
        if repeats > 1 and len(set(self.owner)) < len(self.owner):
            self.ids = None
            raise InputError("several beams or samples of prompts with several images: run them one by one instead")

    def forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` on full prompts: shortens them first; logits are those of the shortened prompt."""

        @functools.wraps(original)
        def wrapped(input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
            direct = self.ids is None and input_ids is not None and pixel_values is not None
            if not direct or self.sight.identity:
                return original(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
            input_ids, kwargs["attention_mask"] = self._prepare(input_ids, pixel_values, kwargs)
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
            cut = isinstance(self.sight, CutSquares)
            given = kwargs.get("image_sizes", args[0] if cut and args else None)
            rows = self._pruned(pixel_values, given)
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            return BaseModelOutputWithPooling(pooler_output=rows) if _returns_output() else rows

        wrapped.pruned = True  # type: ignore[attr-defined]
        return wrapped

    # --- features ---------------------------------------------------------------------------------------
    @torch.no_grad()
    def _pruned(self, pixels: Tensor, given: Any) -> list[Tensor]:
        """Pixels of the call's images -> their (K, D_llm); with beams each image comes several times."""
        sizes = sizes_of(given, len(pixels))
        question = self._questions(len(sizes) // len(self.owner)) if self.pruner.reads_question else None
        return self.sight.features(pixels, sizes, question)

    def _questions(self, repeats: int) -> Any:
        """The question of each image, `repeats` times: the last user turn of the prompt that holds it."""
        assert self.ids is not None
        tokenizer = self.tokenizer or self._saved_tokenizer()
        rows = [[t for t in row if t != self.image_token] for row in self.ids.tolist()]
        texts = [strip_template(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
        asked = [texts[row] for row in self.owner for _ in range(repeats)]
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


def _returns_output() -> bool:
    """transformers 5 wraps the features in a model output, 4.57 returns the list itself."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5
