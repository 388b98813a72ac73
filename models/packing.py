"""Several questions on one image in one sequence: the prefix is computed, stored and read once.

A row holds prompt head, visual tokens, and then all its questions one after another; a mask lets each question see
the prefix and itself, and its positions go on from the prefix. The answers are those of separate prompts, without a
copy of the prefix's keys and values a question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.versions import cache_argument
from pruning.errors import InputError

if TYPE_CHECKING:
    from models.llava import Llava

PREFIX, NOBODY = -1, -2  # owners of cache columns that every question, or none, may see


class PackedPrompts:
    """The key-value cache of R rows and their Q questions.

    Args:
        llava: the model.
        visual: (R, K, D_llm) visual tokens, or R of different lengths (K_r, D_llm).
        owner: the row of each question.
        prompts: (ids before, ids after the image) of each question; all equal before the image.
    """

    def __init__(
        self,
        llava: Llava,
        visual: Tensor | list[Tensor],
        owner: list[int],
        prompts: list[tuple[list[int], list[int]]],
    ) -> None:
        from transformers import DynamicCache

        self.llava, self.device = llava, visual[0].device
        self.rests, self.questions = [after for _, after in prompts], len(prompts)
        before = prompts[0][0]
        if any(other != before for other, _ in prompts):
            raise InputError("all prompts of a batch must be equal before the image")
        self.row = torch.tensor(owner, device=self.device)
        places = [owner[:q].count(r) for q, r in enumerate(owner)]
        self.places = list(zip(owner, places))  # row and seat of each question, on the host: no look at the GPU
        self.seat = torch.tensor(places, device=self.device)  # (Q,) place of a question among its row's
        self.seats = max(places) + 1
        self.cache = {cache_argument(llava.language): DynamicCache(config=llava.language.config)}
        head = llava.embed(torch.tensor(before, dtype=torch.long, device=self.device))
        # rows end in padding columns that nobody sees; being last in a causal pass they change nothing before them
        prefix = pad_sequence([torch.cat([head, own]) for own in visual], batch_first=True)  # (R, P, D_llm)
        llava.language(inputs_embeds=prefix, use_cache=True, **self.cache)
        lengths = [len(before) + len(own) for own in visual]
        self.prefix = [lengths[row] for row in owner]  # of each question
        here = torch.arange(prefix.shape[1]) < torch.tensor(lengths)[:, None]
        self.column_owner = torch.where(here, PREFIX, NOBODY).to(self.device)  # (R, columns of the cache)
        self.next_position = torch.tensor([p + len(r) for p, r in zip(self.prefix, self.rests)], device=self.device)

    @property
    def layers(self) -> list:
        """The layers of the key-value cache; `keys` and `values` (R, heads, columns, d)."""
        return next(iter(self.cache.values())).layers

    def prefill(self, last: list[int]) -> Tensor:
        """Runs the questions; logits of each one's `last[q]` final places: (Q, max(last), V), right-aligned."""
        rows = len(self.column_owner)
        lengths, starts = [0] * rows, []
        for (row, _), rest in zip(self.places, self.rests):
            starts.append(lengths[row])
            lengths[row] += len(rest)
        ids = torch.zeros(rows, max(lengths), dtype=torch.long)  # filled on the host, moved once
        owner = torch.full_like(ids, NOBODY)
        position = torch.zeros_like(ids)
        for (row, seat), start, rest, prefix in zip(self.places, starts, self.rests, self.prefix):
            here = slice(start, start + len(rest))
            ids[row, here] = torch.tensor(rest)
            owner[row, here] = seat
            position[row, here] = prefix + torch.arange(len(rest))
        hidden = self._run(ids.to(self.device), owner.to(self.device), position.to(self.device))
        ends = torch.tensor([s + len(rest) for s, rest in zip(starts, self.rests)], device=self.device)
        places = (ends[:, None] - torch.arange(max(last), 0, -1, device=self.device)).clamp(min=0)  # (Q, t)
        return self.llava.model.lm_head(hidden[self.row[:, None], places])

    def step(self, token: Tensor) -> Tensor:
        """The next token of each question (Q,) -> logits (Q, V)."""
        shape = (len(self.column_owner), self.seats)
        ids = torch.zeros(shape, dtype=torch.long, device=self.device)
        owner = torch.full(shape, NOBODY, device=self.device)
        position = torch.zeros(shape, dtype=torch.long, device=self.device)
        ids[self.row, self.seat], owner[self.row, self.seat] = token, self.seat
        position[self.row, self.seat] = self.next_position
        self.next_position = self.next_position + 1
        return self.llava.model.lm_head(self._run(ids, owner, position)[self.row, self.seat])

    def _run(self, ids: Tensor, owner: Tensor, position: Tensor) -> Tensor:
        """Tokens (R, t) of `owner` (R, t) at `position` (R, t) -> hidden states (R, t, D_llm)."""
        old = self.column_owner.shape[1]
        self.column_owner = torch.cat([self.column_owner, owner], 1)
        column = self.column_owner[:, None]  # (R, 1, columns)
        seen = (column == PREFIX) | ((column == owner[..., None]) & (column != NOBODY))
        seen[..., old:] &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=self.device).tril()
        x = self.llava.embed(ids)
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(x.dtype).min)
        return self.llava.language(
            inputs_embeds=x,
            attention_mask=mask[:, None],
            position_ids=position,
            use_cache=True,
            **self.cache,
        ).last_hidden_state
