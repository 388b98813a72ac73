"""Prompts for methods that prune inside the language model: every question is prefilled with its own image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.decoder import DecoderDriver
from models.versions import cache_argument
from pruning.decoder import DecoderPruner

if TYPE_CHECKING:
    from models.llava import Answer, Llava


class WholePrompts:
    """Each question with its image as a prompt of its own; same use as `PackedPrompts`.

    Args:
        llava: the model.
        visual: (R, N, D_llm) visual tokens.
        owner: the row of each question.
        prompts: (ids before, ids after the image) of each of Q questions.
        pruner: a method inside the language model.
    """

    def __init__(
        self,
        llava: Llava,
        visual: Tensor,
        owner: list[int],
        prompts: list[tuple[list[int], list[int]]],
        pruner: DecoderPruner,
    ) -> None:
        from transformers import DynamicCache

        self.llava, self.visual, self.owner, self.prompts = llava, visual, owner, prompts
        self.questions = len(prompts)
        self.driver = DecoderDriver(llava.language, pruner, visual.shape[1])
        self.cache = {cache_argument(llava.language): DynamicCache(config=llava.language.config)}
        self.mask = torch.zeros(len(prompts), 0, dtype=torch.long, device=visual.device)
        self.average, self.index = float(visual.shape[1]), [list(range(visual.shape[1]))] * len(prompts)

    def prefill(self, last: list[int]) -> Tensor:
        """Logits of each question's `last[q]` final places: (Q, max(last), V), right-aligned.

        The `last[q]` - 1 final ids continue the prompt: they neither rank nor meet more tokens than an answer would.
        """
        tails = [after[len(after) - n + 1 :] for (_, after), n in zip(self.prompts, last)]
        n = self.visual.shape[1]
        rows = [
            before + [0] * n + after[: len(after) - len(tail)] for (before, after), tail in zip(self.prompts, tails)
        ]
        ids, mask = self._padded(rows)
        starts = mask.argmax(1) + torch.tensor([len(before) for before, _ in self.prompts], device=mask.device)
        place = starts[:, None] + torch.arange(n, device=mask.device)  # (Q, N)
        each = torch.arange(len(rows), device=mask.device)
        x = self.llava.embed(ids)
        x[each[:, None], place] = self.visual[self.owner]
        self.driver.arm(each, place)
        logits = self._run(x, mask)[:, -1:]
        if (done := self.driver.prompts) is not None:
            self.average, self.index = done.average, done.index.tolist()
        if max(last) == 1:
            return logits
        ids, mask = self._padded(tails)
        later = self._run(self.llava.embed(ids), mask)
        out = torch.cat([torch.zeros_like(logits), later], 1)
        out[each, [-n for n in last]] = logits[:, 0]
        return out

    def step(self, token: Tensor) -> Tensor:
        """The next token of each question (Q,) -> logits (Q, V)."""
        return self._run(self.llava.embed(token[:, None]), torch.ones_like(token[:, None]))[:, -1]

    def tell(self, answers: list[Answer]) -> None:
        """Writes into the answers what the language model really processed; shifts are not defined here."""
        for answer, index in zip(answers, self.index):
            answer.visual_tokens, answer.index, answer.shifts = self.average, index, {}

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (Q, t), padded on the left."""
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.mask.device), torch.tensor(mask, device=self.mask.device)

    def _run(self, x: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (Q, t, D_llm) with mask (Q, t) -> logits (Q, t, V)."""
        self.mask = torch.cat([self.mask, mask], 1)
        position = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        with self.driver.attached():
            hidden = self.llava.language(
                inputs_embeds=x,
                attention_mask=self.mask,
                position_ids=position,
                use_cache=True,
                **self.cache,
            ).last_hidden_state
        return self.llava.model.lm_head(hidden)
