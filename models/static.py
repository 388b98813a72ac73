"""Decoding in fixed shapes, as a GPU wants it: nothing is allocated, grown or looked at from the host at a step.

The keys and values of a prefilled pack are copied into a cache whose tensors never move. A step is then the same work
on the same addresses, which a CUDA graph records once and replays. Shapes are rounded up, so that batches share them.
Speed on a GPU is unmeasured; that the shapes are fixed and the answers the same is tested on a CPU.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.packing import NOBODY, PREFIX, PackedPrompts
from models.versions import cache_argument

if TYPE_CHECKING:
    from models.llava import Llava
    from models.whole import WholePrompts

log = logging.getLogger("dcp_prune")
CHUNK = 32  # tokens that a shape has room for: masked columns cost time too, and few answers are longer
COLUMNS = 128  # cache columns come in multiples; fused attention wants a mask with aligned rows
SHAPES = 8  # so many are kept


def bucket(n: int) -> int:
    """`n` rounded up to one of four numbers an octave: at most a quarter more, exact up to 8."""
    unit = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // unit) * unit


class StaticStep:
    """One token of each question in R rows of S seats, over C cache columns.

    Args:
        llava: the model.
        memory: (layers, 2, R, heads, C, d) where the keys and values go.
        seats: S.
    """

    def __init__(self, llava: Llava, memory: Tensor, seats: int) -> None:
        from transformers import StaticCache

        self.language, self.embed, self.head = llava.language, llava.embed, llava.model.lm_head
        _, _, rows, _, columns, _ = memory.shape
        self.memory, self.cache = memory, StaticCache(config=llava.language.config, max_cache_len=columns)
        for layer, (keys, values) in zip(self.cache.layers, memory):
            layer.lazy_initialization(keys, values)  # its counter stays, its tensors give way to ours
            layer.keys, layer.values = keys, values
        self.mask = memory.new_empty(rows, 1, seats, columns)
        own = memory.new_full((seats, seats), torch.finfo(memory.dtype).min).fill_diagonal_(0)
        self.own = own.expand(rows, 1, -1, -1)  # of the columns of a step each seat sees one
        self.seat = torch.arange(seats, device=memory.device)
        self.ids = torch.zeros(rows, seats, dtype=torch.long, device=memory.device)
        self.position = torch.zeros_like(self.ids)
        self.loads, self.graph, self.logits = 0, None, None

    def load(self, pack: PackedPrompts) -> None:
        """Takes over a pack's keys and values; what earlier ones left (NaN perhaps) goes."""
        rows, old = pack.column_owner.shape
        self.memory[:, :, rows:] = 0
        self.memory[..., old:, :] = 0
        for layer, given in zip(self.cache.layers, pack.layers):
            layer.keys[:rows, :, :old], layer.values[:rows, :, :old] = given.keys, given.values
            layer.cumulative_length.fill_(old)
        column = pack.column_owner[:, None]  # (R, 1, columns)
        seen = (column == PREFIX) | (column == self.seat[:, None])
        self.mask.fill_(torch.finfo(self.mask.dtype).min)
        self.mask[:rows, 0, :, :old].masked_fill_(seen, 0)
        self.position.zero_()
        self.position[pack.row, pack.seat] = pack.next_position
        self.loads += 1

    def unload(self, pack: PackedPrompts, steps: int) -> None:
        """Gives the pack's keys and values back with those of `steps` more tokens."""
        rows, old = pack.column_owner.shape
        owner = torch.full((rows, len(self.seat)), NOBODY, device=pack.device)
        now = old + steps * len(self.seat)
        for layer, given in zip(self.cache.layers, pack.layers):
            given.keys, given.values = (x[:rows, :, :now].clone() for x in (layer.keys, layer.values))
        owner[pack.row, pack.seat] = pack.seat
        pack.column_owner = torch.cat([pack.column_owner, owner.repeat(1, steps)], 1)
        pack.next_position = pack.next_position + steps

    def run(self) -> Tensor:
        """Logits (R, S, V) after the tokens `ids`: what a graph records."""
        self.mask.index_copy_(3, self.cache.get_seq_length() + self.seat, self.own)
        hidden = self.language(
            inputs_embeds=self.embed(self.ids),
            attention_mask=self.mask,
            position_ids=self.position,
            use_cache=True,
            **{cache_argument(self.language): self.cache},
        ).last_hidden_state
        self.position += 1
        return self.head(hidden)


class StaticSteps:
    """The steps of one model by shape, in one piece of memory: they are used one after the other.

    Args:
        on: whether packs are decoded here; else their own `step` does it.
        capture: record a CUDA graph of each shape that comes a second time (the first time warms it up).
    """

    def __init__(self, on: bool, capture: bool) -> None:
        self.on, self.capture = on, capture
        self.memory: Tensor | None = None
        self.steps: OrderedDict[tuple[int, int, int], StaticStep] = OrderedDict()

    def follow(self, pack: PackedPrompts | WholePrompts, tokens: int) -> Callable[[Tensor], Tensor]:
        """The pack's `step`, good for `tokens` calls; in fixed shapes where that is on and possible."""
        if not self.on or not isinstance(pack, PackedPrompts):  # inside the language model lengths differ by layer
            return pack.step
        taken, static = 0, None

        def step(token: Tensor) -> Tensor:
            nonlocal taken, static
            if taken % CHUNK == 0:
                if static is not None:
                    static.unload(pack, CHUNK)
                    static = None  # its memory may have to give way to a larger one
                static = self._load(pack, min(tokens - taken, CHUNK))
            taken += 1
            static.ids[pack.row, pack.seat] = token
            return self._run(static)[pack.row, pack.seat]

        return step

    def release(self) -> bool:
        """Where memory is short: forgets it all and leaves decoding to the packs from now on; whether it held any."""
        held = self.memory is not None
        if held and self.on:
            log.warning("out of memory: answers are decoded without fixed shapes from now on")
        self.on = self.on and not held
        self._forget()
        return held

    def _forget(self) -> None:
        self.steps.clear()  # the graphs hold addresses in the memory
        self.memory = None

    @torch.inference_mode(False)  # whatever mode the caller is in: others will write into what is made here
    @torch.no_grad()
    def _load(self, pack: PackedPrompts, tokens: int) -> StaticStep:
        (rows, columns), seats = pack.column_owner.shape, bucket(pack.seats)
        shape = bucket(rows), seats, -(-(columns + seats * tokens) // COLUMNS) * COLUMNS
        static = self.steps.pop(shape, None)
        if static is None:
            static = StaticStep(pack.llava, self._memory(pack, shape[0], shape[2]), seats)
        self.steps[shape] = static  # the last used at the end
        if len(self.steps) > SHAPES:
            self.steps.popitem(last=False)
        static.load(pack)
        return static

    def _memory(self, pack: PackedPrompts, rows: int, columns: int) -> Tensor:
        keys = pack.layers[0].keys
        shape = len(pack.layers), 2, rows, keys.shape[1], columns, keys.shape[3]
        if self.memory is None or len(self.memory) < prod(shape):
            self._forget()
            self.memory = keys.new_zeros(prod(shape))
        return self.memory[: prod(shape)].view(shape)

    def _run(self, static: StaticStep) -> Tensor:
        if self.capture and static.graph is None and static.loads > 1:
            self._capture(static)
        if static.graph is None:
            return static.run()
        static.graph.replay()
        return static.logits  # type: ignore[return-value]

    def _capture(self, static: StaticStep) -> None:
        """Records the step; its scratch memory is that of the other graphs."""
        pool = next((other.graph.pool() for other in self.steps.values() if other.graph is not None), None)
        try:
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(torch.cuda.current_stream()),  # a failed capture would leave its own stream behind
                torch.cuda.graph(graph, pool, capture_error_mode="thread_local"),  # images are read in another
            ):
                static.logits = static.run()
            static.graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # quantised layers and some rotary embeddings look at values from the host
            self.capture = False
            log.warning("decoding without CUDA graphs: %s", str(error).splitlines()[0])
