"""`with pruner(model):` on an unmodified Hugging Face LLaVA or LLaVA-NeXT.

Inside the context the model's `generate` and `forward` accept what the processor made (576 image placeholders):
the placeholders are shortened to K, `get_image_features` returns the K pruned tokens, everything else is the
model's own code. The three names are set on the instances and put back on exit.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from models.clip import load_clip
from models.decoder import inside
from models.sight import CutSquares, require_llava, sight, sizes_of
from models.text import read_questions, strip_template
from models.versions import cache_in, returns_output
from pruning.base import Pruner
from pruning.errors import InputError


class Attached(AbstractContextManager, ContextDecorator):
    """What `attach` returns: entered as often as you like, one block at a time."""

    def __init__(self, open_: Callable[[], AbstractContextManager[nn.Module]]) -> None:
        self._open, self._block = open_, nullcontext()

    def __enter__(self) -> nn.Module:
        block = self._open()
        model = block.__enter__()  # which refuses a second block on one model
        self._block = block
        return model

    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)


def attach(
    model: nn.Module, pruner: Pruner, tokenizer: Any = None, clip: str | None = None, **packing: Any
) -> Attached:
    """Prune the model's visual tokens inside the `with` block.

    Args:
        model: a `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.
        pruner: any method with a budget.
        tokenizer: only for methods that read the question; by default the one saved beside the model.
        clip: folder or hub name of the CLIP whose text tower such methods read (`models.clip`); without it the
            model's own embeddings stand in.
        packing: `newline` and `unpad` of LLaVA-NeXT (`models.crops.Crops`).

    Raises (where the block is entered):
        InputError: not a LLaVA with a CLIP tower, already inside such a block, the budget does not fit, or `clip`
            cannot be loaded.
    """
    return Attached(functools.partial(_pruned, model, pruner, tokenizer, clip, packing))


@contextmanager
def _pruned(
    model: nn.Module, pruner: Pruner, tokenizer: Any, clip: str | None, packing: dict[str, Any]
) -> Iterator[nn.Module]:
    """One block of `attach`."""
    require_llava(model)
    inner = model.model
    if hasattr(vars(inner).get("get_image_features"), "pruned"):
        raise InputError("this model is already inside a `with pruner(model)` block; leave it first")
    call = _Call(model, pruner, tokenizer, clip, packing)
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
    """The state of one `with` block: which prompts the running call holds. Calls from several threads take turns."""

    def __init__(
        self, model: nn.Module, pruner: Pruner, tokenizer: Any, clip: str | None, packing: dict[str, Any]
    ) -> None:
        self.model, self.pruner, self.tokenizer = model, pruner, tokenizer
        self.sight = sight(model, pruner, **packing)
        embed = model.get_input_embeddings().weight
        self.clip_text = None if clip is None else load_clip(clip, self.sight.tower, embed)
        self.image_token = model.config.image_token_id
        self.ids: Tensor | None = None  # (B, L') shortened prompts of the running call
        self.owner: list[int] = []  # the row of each of their images
        self.turn = threading.RLock()
        # caches of `forward` on shortened prompts: the caller's length of the prompt, and the mask it has now
        self.caches: WeakKeyDictionary[Any, tuple[int, Tensor]] = WeakKeyDictionary()

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
            config = (args[0] if args else kwargs.get("generation_config")) or self.model.generation_config
            with self.turn:
                self._refuse(ids, pixels, config, kwargs)
                if pixels is None or self.sight.identity:
                    return original(*args, **kwargs) if ids is None else original(ids, *args, **kwargs)
                if kwargs.get("attention_mask") is None:
                    kwargs["attention_mask"] = inferred_mask(ids, config, kwargs)
                try:
                    short, kwargs["attention_mask"] = self._prepare(ids, pixels, kwargs)
                    self._refuse_mixed_beams(config, kwargs)
                    gone = ids.shape[1] - short.shape[1]
                    for name in ("max_length", "min_length"):  # they count the prompt as the caller sees it
                        given, set_ = kwargs.get(name), getattr(config, name, None) or 0
                        if given is not None or set_ > ids.shape[1]:
                            kwargs[name] = (set_ if given is None else given) - gone
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

    def _refuse(self, ids: Tensor | None, pixels: Tensor | None, config: Any, kwargs: dict[str, Any]) -> None:
        """What `generate` cannot do with pruned prompts."""
        if self.pruner.inside_language_model:
            if kwargs.get("use_cache") is False:
                raise InputError(
                    f"{type(self.pruner).__name__} ranks tokens once, for its cache: leave use_cache out"
                )
            for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
                if kwargs.get(name) is not None or getattr(config, name, None) is not None:
                    raise InputError(
                        f"{type(self.pruner).__name__} prunes inside the language model, whose cache takes no "
                        f"tokens back as assisted generation wants: leave {name} out"
                    )
        if self.sight.identity:
            return
        if pixels is not None and ids is None:
            raise InputError("give generate input_ids: embeddings do not tell where the images are")
        cache = cache_in(kwargs)
        if cache is not None and cache.get_seq_length() and ids is not None and (ids == self.image_token).any():
            raise InputError("a filled key-value cache does not fit a prompt with images: leave past_key_values out")

    def _prepare(self, ids: Tensor, pixels: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Shortened ids and mask; labels in `kwargs` follow."""
        if kwargs.get("position_ids") is not None:
            raise InputError("leave position_ids out: those of the pruned prompt are made from the attention mask")
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            if kwargs.get(name, wanted := getattr(self.model.config, name)) not in (None, wanted):
                raise InputError(f"{name} is {wanted!r} inside the block, as configured; got {kwargs[name]!r}")
        given, mask = kwargs.get("image_sizes"), kwargs.get("attention_mask")
        sizes = sizes_of(given, len(pixels) if given is None else len(given))
        beside = [(torch.ones_like(ids) if mask is None else mask, 0)]
        if kwargs.get("labels") is not None:
            beside.append((kwargs["labels"], -100))
        self.ids, mask, *labels = self.shorten([self.sight.counts(size) for size in sizes], ids, *beside)
        if labels:
            kwargs["labels"] = labels[0]
        return self.ids, mask

    def _refuse_mixed_beams(self, config: Any, kwargs: dict[str, Any]) -> None:
        """transformers repeats images one by one for beams, which fits prompts of at most one image only."""
        names = ("num_beams", "num_return_sequences")
        repeats = max(kwargs.get(name) or getattr(config, name, None) or 1 for name in names)
        if repeats > 1 and len(set(self.owner)) < len(self.owner):
            raise InputError("several beams or samples of prompts with several images: run them one by one instead")

    def forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` on full prompts: shortens them first; logits are those of the shortened prompt."""
        names = list(inspect.signature(original).parameters)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            kwargs |= dict(zip(names, args))
            ids, pixels = kwargs.get("input_ids"), kwargs.get("pixel_values")
            with self.turn:
                if self.ids is not None or self.sight.identity:
                    return original(**kwargs)
                if ids is None or pixels is None:
                    return original(**self._continued(kwargs))
                try:
                    kwargs["input_ids"], kwargs["attention_mask"] = self._prepare(ids, pixels, kwargs)
                    out = original(**kwargs)
                finally:
                    self.ids = None
                if isinstance(out, dict) and (cache := cache_in(out)) is not None:
                    self.caches[cache] = ids.shape[1], kwargs["attention_mask"]
                return out

        return wrapped

    def _continued(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a later `forward` with the cache of a shortened prompt, with the mask that this prompt has."""
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        if cache is None or cache not in self.caches:
            return kwargs
        if kwargs.get("position_ids") is not None:
            raise InputError("leave position_ids out: those of the pruned prompt are made from its cache")
        length, short = self.caches[cache]
        tail = cache.get_seq_length() - short.shape[1] + kwargs["input_ids"].shape[1]
        new = short.new_ones(len(short), tail) if mask is None else mask[:, length:]
        return {**kwargs, "attention_mask": torch.cat([short, new], 1)}

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

            return BaseModelOutputWithPooling(pooler_output=rows) if returns_output() else rows

        wrapped.pruned = True  # type: ignore[attr-defined]
        return wrapped

    # --- features ---------------------------------------------------------------------------------------
    def _pruned(self, pixels: Tensor, given: Any) -> list[Tensor]:
        """Pixels of the call's images -> their (K, D_llm); with beams each image comes several times."""
        sizes = sizes_of(given, len(pixels))
        question = self._questions(len(sizes) // len(self.owner)) if self.pruner.reads_question else None
        return self.sight.features(pixels, sizes, question)

    def _questions(self, repeats: int) -> Any:
        """The question of each image, `repeats` times: the last user turn of the prompt that holds it."""
        assert self.ids is not None
        tokenizer = self.tokenizer or self._saved_tokenizer()
        texts = [strip_template(text) for text in tokenizer.batch_decode(self.ids)]
        asked = [texts[row] for row in self.owner for _ in range(repeats)]
        return read_questions(asked, tokenizer, self.model.get_input_embeddings(), self.clip_text)

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


def inferred_mask(ids: Tensor, config: Any, kwargs: dict[str, Any]) -> Tensor:
    """The attention mask of a `generate` call without one, as transformers makes it: padding is not attended to."""
    pad, eos = (kwargs.get(name, getattr(config, name, None)) for name in ("pad_token_id", "eos_token_id"))
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return torch.ones_like(ids)
    return (ids != pad).long()
