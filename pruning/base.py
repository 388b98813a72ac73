"""What every pruning method is: a dataclass of hyper-parameters with one budget.

Override the simplest point that serves:

1. `score(tokens, question) -> (B, n)`: rank; the base keeps the top K.
2. `select(tokens, question) -> (B, K)`: choose a set.
3. `reduce(tokens, question) -> VisualTokens`: when tokens change (merging).
4. `schedule(depth, n) -> {layer: keep}` with `reduce_at(layer, tokens, keep)`: prune inside the tower.
5. `pruning.decoder.DecoderPruner`: prune inside the language model.

Four counts: `budget` is what the user asks for; `keeps(n)` what of a crop's n patches reaches the language model (the
same, but 0 for `blank` and n for a method inside the language model); `tokens.count` what is there at this place,
`tokens.patches` the n of the crop before any pruning. Inside the language model the budget is an average over its
layers, and `plan(depth, n)` turns it into a count at each stage.

The runner (`models/`) owns splicing, ordering, positions, batching and logging; a method never touches them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pruning.errors import InputError
from pruning.ops import top
from pruning.tokens import Question, VisualTokens

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Pruner:
    """Base of all methods. `budget` is the number of visual tokens of one image that reach the language model.

    Raises:
        InputError: the budget is not an integer of at least 1.
    """

    budget: int

    reads_question: ClassVar[bool] = False  # the selection depends on the question
    reads_clip: ClassVar[bool] = False  # of the question, what CLIP's text tower makes of it (or what stands in)
    one_by_one: ClassVar[bool] = False  # counts inside the tower differ between images: no batching there
    resizes_image: ClassVar[bool] = False  # the method cuts its own patches (`downsample`)
    inside_block: ClassVar[bool] = False  # reduce_at acts between attention and MLP of a block (ToMe)
    inside_language_model: ClassVar[bool] = False  # all tokens enter the language model (pruning/decoder.py)

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, Integral):
            raise InputError(f"budget must be an integer, got {self.budget!r}")
        self.budget = int(self.budget)  # also numpy's integers
        if self.budget < 1:
            raise InputError(f"budget must be at least 1, got {self.budget}")

    def keeps(self, n: int) -> int:
        """How many of a crop's `n` visual tokens reach the language model (`budget`, except for controls).

        Raises:
            InputError: the budget is larger than `n`.
        """
        if self.budget > n:
            raise InputError(f"budget must be between 1 and {n}, got {self.budget}")
        return self.budget

    # --- inside the tower -------------------------------------------------------------------------------
    def schedule(self, depth: int, n: int) -> dict[int, int]:
        """Layers (0-based, of the `depth` blocks that run) after which the method acts -> tokens to keep there.

        The number comes back as the `keep` of `reduce_at` as it is; an `int` with more on it (FlowCut's `Cut`, which
        knows the blocks that are left) gets there too.
        """
        return {}

    def reduce_at(self, layer: int, tokens: VisualTokens, keep: int) -> VisualTokens:
        """The tokens (B, m, D) that the next block sees, after block `layer`; `keep` as the schedule said."""
        raise NotImplementedError(f"{type(self).__name__} has a schedule but no reduce_at")

    # --- after the last block that the projector reads --------------------------------------------------
    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """(B, n) float32, higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} overrides none of score, select, reduce")

    def select(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """(B, K) slots of the kept tokens, in any order."""
        return top(self.score(tokens, question), self.keeps(tokens.patches))

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        """The K tokens (B, K, D) that go to the projector, in any order."""
        return tokens.gather(self.select(tokens, question))

    # --- for the runner ---------------------------------------------------------------------------------
    @torch.no_grad()
    def finish(self, tokens: VisualTokens, question: Question | None = None) -> VisualTokens:
        """`reduce` with the contract enforced: exactly K tokens in raster order; the identity where n = K already.

        Raises:
            InputError: budget out of range, or the method needs a question and none was given.
            RuntimeError: the method broke the contract (a bug in the method).
        """
        keep = self.keeps(tokens.patches)
        if tokens.count == keep:
            return tokens.raster()
        if self.reads_question and question is None:
            raise InputError(f"{type(self).__name__} reads the question, but none was given")
        out = self.reduce(tokens, question)
        if out.count != keep:
            raise RuntimeError(f"{type(self).__name__} kept {out.count} tokens of {tokens.count}, expected {keep}")
        return out.raster()

    def __call__(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """`with pruner(model): model.generate(...)` on a Hugging Face LLaVA; the model is restored on exit."""
        from models.attach import attach  # late: the one place where a method meets a model

        return attach(model, self)
