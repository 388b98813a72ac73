"""Pruning inside the language model, by hooks on the stock decoder layers.

A hook before each layer sees the states that enter it. In the prefill the hooks recompute the few attention rows that
a method reads (fused attention stays on), let tokens leave, and hand the following layers masks, positions and
rotary tables that fit what is left. Later forward passes with the same cache only get masks that fit each layer's
keys. Prompts are left-padded; what leaves is replaced by less padding, so rows with different numbers of images mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from models.prompts import Prompts
from models.versions import cache_in
from pruning.base import Pruner
from pruning.decoder import DecoderPruner, Look
from pruning.errors import InputError

DECODERS = ("llama", "mistral", "qwen2")  # their attention rows are those of `attention_rows`


class DecoderDriver:
    """Runs one method inside one language model.

    Args:
        language: a Llama-like decoder (`layers`, `rotary_emb`).
        pruner: the method.
        patches: N, visual tokens of an image.

    Raises:
        InputError: the budget cannot be reached on this depth, or a decoder that the hooks do not fit.
    """

    def __init__(self, language: nn.Module, pruner: DecoderPruner, patches: int) -> None:
        self.language, self.pruner, self.patches = language, pruner, patches
        self.layers = language.layers[: language.config.num_hidden_layers]
        self.plan = pruner.plan(len(self.layers), patches)
        self.attention = language.config._attn_implementation
        if self.attention not in ("sdpa", "eager"):
            raise InputError(f"pruning inside the language model needs sdpa or eager attention, got {self.attention}")
        devices = sorted({str(x.device) for x in self.layers.parameters()})
        if len(devices) > 1:
            raise InputError(f"pruning inside the language model needs it on one device, got {', '.join(devices)}")
        if (kind := language.config.model_type) not in DECODERS:
            raise InputError(f"pruning inside the language model knows {', '.join(DECODERS)}, got {kind}")
        self._armed: tuple[Tensor, Tensor] | None = None  # owner and place of the images of the next forward pass
        self._known: WeakKeyDictionary[Any, Prompts] = WeakKeyDictionary()  # by key-value cache
        self.prompts: Prompts | None = None  # of the running or last pass; none without images
        self._prefilling = False
        self._tail: Tensor | None = None  # (B, t) real columns behind the prompt
        self._changed: dict[str, Any] = {}  # arguments of the layers from the last stage on

    def arm(self, owner: Tensor, place: Tensor) -> None:
        """The next forward pass is a prefill with images of rows `owner` (I,) at columns `place` (I, N)."""
        self._armed = (owner, place)

    def disarm(self) -> None:
        """The next forward pass holds no images, whatever became of the last prompts."""
        self._armed = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place."""
        if not self.plan:
            yield
            return
        with ExitStack() as stack:
            hook = self.language.register_forward_pre_hook(self._enter, with_kwargs=True)
            stack.callback(hook.remove)
            for number, layer in enumerate(self.layers):
                hook = layer.register_forward_pre_hook(self._before(number), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    # --- one forward pass -------------------------------------------------------------------------------
    def _enter(self, language: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        cache, mask, x = cache_in(kwargs), kwargs.get("attention_mask"), kwargs["inputs_embeds"]
        past = 0 if cache is None else cache.get_seq_length()
        self._prefilling, armed, self._armed = self._armed is not None, self._armed, None
        if armed is None:
            self.prompts = self._known.get(cache) if cache is not None else None
            if self.prompts is None:
                return
        if mask is not None and mask.ndim != 2:
            raise InputError("pruning inside the language model needs a dynamic key-value cache (2-D masks)")
        real = x.new_ones(len(x), past + x.shape[1], dtype=torch.bool) if mask is None else mask.bool()
        if armed is None:
            self._tail = real[:, self.prompts.length :]
            return
        if past:
            raise InputError(
                "pruning inside the language model needs the whole prompt in one pass, with an empty cache"
            )
        if self.language.training and self.language.is_gradient_checkpointing:
            raise InputError("pruning inside the language model does not fit gradient checkpointing: switch it off")
        if not bool(real[:, -1].all()):
            raise InputError("pruning inside the language model needs prompts padded on the left")
        position = kwargs.get("position_ids")
        position = torch.arange(x.shape[1], device=x.device)[None] if position is None else position
        self.prompts = Prompts(*armed, real, position.expand(len(x), -1))
        if self.pruner.text_rows:
            self.prompts.asking = self._askers(x)

    def _askers(self, x: Tensor) -> Tensor:
        """(I, R) from input embeddings (B, L, D)."""
        now = self.prompts
        text = now.text_after_images()
        rows = int(text[now.owner].sum(1).max())
        visual = x[now.owner[:, None], now.place]
        return self.pruner.askers(visual, x[now.owner, -rows:], text[now.owner, -rows:])

    def _before(self, number: int) -> Any:
        """The hook before layer `number`."""
        plan, own = self.plan, self.pruner.own_row

        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            now, hidden, cache = self.prompts, args[0], cache_in(kwargs)
            if now is None:
                return None
            if self._prefilling:
                if number == 0:
                    self._changed = {"position_embeddings": kwargs["position_embeddings"]}
                    if cache is not None:
                        self._known[cache] = now
                if own and number in plan:
                    now.score = self._look(layer, hidden)
                if number in plan:
                    hidden = now.shrink(hidden, self.pruner, plan[number])
                    now.stages[number] = now.real
                    self._changed = self._arguments(hidden)
                if not own and number + 1 in plan:
                    now.score = self._look(layer, hidden)
                now.counts.append(now.place.shape[1])
            elif number in plan:
                self._changed = {"attention_mask": self._later_mask(now, number, hidden, cache)}
            elif number == 0:
                self._changed = {}
            return (hidden, *args[1:]), {**kwargs, **self._changed}

        return hook

    def _arguments(self, hidden: Tensor) -> dict[str, Any]:
        """What the layers of the prefill get from a stage on."""
        now = self.prompts
        return {
            "attention_mask": layer_mask(now.real, hidden.shape[1], hidden.dtype, self.attention),
            "position_ids": now.position,
            "position_embeddings": self.language.rotary_emb(hidden, now.position),
        }

    def _later_mask(self, now: Prompts, number: int, hidden: Tensor, cache: Any) -> Tensor | None:
        """Mask of new tokens (B, t, D) over the keys of layer `number`."""
        real = torch.cat([now.stages[number], self._tail], 1)
        held = cache.get_seq_length(number) + hidden.shape[1]
        if real.shape != (len(hidden), held):
            raise InputError(
                f"the key-value cache of layer {number} holds {held} tokens, expected {real.shape[1]}; pruning "
                "inside the language model works with greedy, sampled and beam decoding only"
            )
        return layer_mask(real, hidden.shape[1], hidden.dtype, self.attention)

    @torch.no_grad()
    def _look(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Score (I, n) from the attention of `layer` with input (B, L, D)."""
        now, (cos, sin) = self.prompts, self._changed["position_embeddings"]
        cos, sin = (x.expand(len(hidden), -1, -1) for x in (cos, sin))
        rows = 1 if now.asking is None else now.asking.shape[1]
        attention = attention_rows(layer, hidden, cos, sin, now.real, rows)  # (B, H, R, L)
        columns = now.place[:, None, None].expand(-1, attention.shape[1], rows, -1)

        def turn() -> Tensor:
            both = torch.cat([cos, sin], 2).float()[now.owner]  # cos a cos b + sin a sin b = cos(a - b)
            bias = both[:, -rows:] @ both.transpose(1, 2) / cos.shape[2] ** 0.5
            return bias.gather(2, columns[:, 0])

        asking = now.place.new_ones(len(now.place), 1).bool() if now.asking is None else now.asking
        return self.pruner.rank(Look(attention[now.owner].gather(3, columns), asking, turn))


def attention_rows(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, real: Tensor, rows: int) -> Tensor:
    """The last `rows` rows of a decoder layer's attention in float32: input (B, L, D) -> (B, H, rows, L).

    Args:
        cos, sin: (B, L, d) rotary tables.
        real: (B, L) bool.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    attention, x = layer.self_attn, layer.input_layernorm(hidden)
    q = attention.q_proj(x[:, -rows:]).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)  # (B, H, R, d)
    k = attention.k_proj(x).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)  # (B, H_kv, L, d)
    q, _ = apply_rotary_pos_emb(q, q, cos[:, -rows:], sin[:, -rows:])
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    k = repeat_kv(k, q.shape[1] // k.shape[1])
    logits = q.float() @ k.float().transpose(2, 3) * attention.scaling
    return logits.masked_fill(~visible(real, rows), torch.finfo(torch.float32).min).softmax(-1)


def visible(real: Tensor, queries: int) -> Tensor:
    """Causal mask of the last `queries` of columns `real` (B, L): (B, 1, queries, L) bool, true = may be seen."""
    past = torch.ones(queries, real.shape[1], dtype=torch.bool, device=real.device).tril(real.shape[1] - queries)
    return past & real[:, None, None]


def layer_mask(real: Tensor, queries: int, dtype: torch.dtype, attention: str) -> Tensor | None:
    """A layer's mask for the last `queries` of columns `real` (B, L); None where its own causal one serves."""
    if attention == "sdpa" and queries in (1, real.shape[1]) and bool(real.all()):
        return None
    seen = visible(real, queries)
    seen = seen | ~seen.any(-1, keepdim=True)  # padding may see anything: a row without keys would be NaN
    if attention == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)


@contextmanager
def inside(model: nn.Module, pruner: Pruner, patches: int) -> Iterator[None]:
    """The method's hooks on a `LlavaForConditionalGeneration`; nothing for methods that act before the decoder."""
    if not pruner.inside_language_model:
        yield
        return
    driver = DecoderDriver(model.model.language_model, pruner, patches)

    def arm(llava: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        driver.disarm()
        if kwargs.get("input_ids") is None:
            raise InputError("pruning inside the language model needs input_ids, got inputs_embeds")
        cache = cache_in(kwargs)
        if cache is not None and cache.get_seq_length():  # a later token, which may be the image's by chance
            return
        rows, columns = torch.where(kwargs["input_ids"] == model.config.image_token_id)
        if not len(rows):
            return
        counts = torch.bincount(rows)
        if bool((counts % patches).any()):
            raise InputError(f"each image needs {patches} placeholders, the prompts hold {counts.tolist()}")
        driver.arm(rows.view(-1, patches)[:, 0], columns.view(-1, patches))

    hook = model.model.register_forward_pre_hook(arm, with_kwargs=True)
    try:
        with driver.attached():
            yield
    finally:
        hook.remove()
