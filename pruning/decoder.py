"""Base of the methods that prune inside the language model.

All N visual tokens enter the language model; before some of its layers a part of them leaves. The budget is the
average number of visual tokens that a decoder layer processes, so a method's keep counts follow from the budget and
the depth. A layer counts with the tokens at its input: a layer after which tokens leave still counts in full.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from torch import Tensor

from pruning.base import Pruner
from pruning.errors import InputError, OutOfReach
from pruning.ops import top

Plan = dict[int, int]  # layer (0-based) before which tokens leave -> how many are kept there


@dataclass(frozen=True)
class Look:
    """What I images got of the attention of some text rows (R of them, right-aligned, often only the last)."""

    attention: Tensor  # (I, H, R, n) float32 probabilities, normalised over the whole sequence
    asking: Tensor  # (I, R) bool: the rows that count
    turn: Callable[[], Tensor]  # (I, R, n) rotary bias: cosines of the angles, sum over d / sqrt(d)


@dataclass
class DecoderPruner(Pruner):
    """`budget`: the average number of visual tokens of an image over the decoder layers.

    Raises:
        InputError: `plan` says which budgets a depth allows.
    """

    inside_language_model: ClassVar[bool] = True
    own_row: ClassVar[bool] = False  # reads the attention of the layer before which tokens leave, not the one before
    slack: ClassVar[float] = 0.5  # how far above the budget the average may be
    text_rows: ClassVar[bool] = False  # `askers` picks among all text after the image; otherwise the last row asks

    def keeps(self, n: int) -> int:
        """All `n`: nothing leaves before the language model."""
        super().keeps(n)
        return n

    # --- what a method overrides ------------------------------------------------------------------------
    @property
    def renumbers(self) -> bool:
        """Whether the tokens that stay get positions 0, 1, 2, ... at each stage of the prefill."""
        return False

    def plans(self, depth: int, n: int) -> list[Plan]:
        """Plans whose average is nearest to the budget, best first; those above it where none is low enough."""
        raise NotImplementedError

    def size(self, n: int, keep: int) -> int:
        """Tokens after a stage that got `n` and keeps `keep`."""
        return keep

    def askers(self, visual: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """Text rows that rank: embeddings (I, n, D) and (I, R, D), real text (I, R) bool -> (I, R) bool."""
        raise NotImplementedError

    def rank(self, look: Look) -> Tensor:
        """(I, n) float32, higher is kept: by default the mean over heads of the last row."""
        return last_row_mean(look.attention)

    def shrink(self, hidden: Tensor, score: Tensor, keep: int) -> tuple[Tensor, Tensor | None]:
        """One stage.

        Args:
            hidden: (I, n, D) states that enter the next layer.
            score: (I, n) from `rank`.

        Returns:
            Slots (I, k) of the kept tokens in raster order, and tokens (I, c, D) to append to them, if any.
        """
        return top(score, keep).sort(1).values, None

    # --- budget -----------------------------------------------------------------------------------------
    def plan(self, depth: int, n: int) -> Plan:
        """The stages that meet the budget on `depth` layers with `n` visual tokens; none for the full budget.

        Raises:
            InputError: the budget is above `n`.
            OutOfReach: it is below what the method can reach on this depth.
        """
        self.keeps(n)
        if self.budget == n:
            return {}
        found = self.plans(depth, n)
        fit = [plan for plan in found if self.average(plan, depth, n) <= self.budget + self.slack]
        if not fit:
            lowest = min((self.average(plan, depth, n) for plan in found), default=n)
            raise OutOfReach(
                f"budget of {type(self).__name__}, an average over {depth} decoder layers, must be between "
                f"{ceil(lowest - self.slack)} and {n}, got {self.budget}; below that prune before the language model"
            )
        return fit[0]

    def counts(self, plan: Plan, depth: int, n: int) -> list[int]:
        """Visual tokens that each of `depth` layers processes."""
        out = []
        for layer in range(depth):
            n = self.size(n, plan[layer]) if layer in plan else n
            out.append(n)
        return out

    def average(self, plan: Plan, depth: int, n: int) -> float:
        """The mean that the budget speaks of."""
        return sum(self.counts(plan, depth, n)) / depth

    def nearest(self, make: Callable[[int], Plan], steps: int, depth: int, n: int) -> Plan:
        """Of the plans `make(0..steps)`, whose averages rise, the one nearest to the budget."""

        def average(i: int) -> float:
            return self.average(make(i), depth, n)

        above = min(bisect_left(range(steps + 1), self.budget, key=average), steps)
        return make(min((max(above - 1, 0), above), key=lambda i: abs(average(i) - self.budget)))


def last_row_mean(attention: Tensor) -> Tensor:
    """Mean over heads of the last row: (I, H, R, n) -> (I, n)."""
    return attention[:, :, -1].float().mean(1)


def scaled(layers: tuple[int, ...], depth: int, published: int = 32) -> tuple[int, ...]:
    """Stages published for `published` layers at the same share of `depth` layers: rising, from layer 1 on."""
    out: list[int] = []
    for layer in layers:
        at = max(int(layer * depth / published + 0.5), out[-1] + 1 if out else 1)
        if at < depth:
            out.append(at)
    return tuple(out)


def checked(layers: object) -> tuple[int, ...]:
    """A rising list of layers from 1 on, as given by a user.

    Raises:
        InputError: it is none.
    """
    given = tuple(layers) if isinstance(layers, (list, tuple)) else (layers,)
    right = all(isinstance(x, int) and not isinstance(x, bool) and x >= 1 for x in given)
    if not given or not right or list(given) != sorted(set(given)):
        raise InputError(f"decoder layers must be rising integers from 1 on, got {layers!r}")
    return given
