"""FlowCut: prunes inside the tower, the faster the more CLS attention concentrates (arXiv 2505.19536)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.ops import by_parts, top
from pruning.tokens import Question, VisualTokens


class Cut(int):
    """Tokens to keep at least, with `left`: blocks between this cut and the last one.

    An int, so that the schedule is one of counts like any other; `reduce_at`, which does not learn the depth, gets
    `left` with it.
    """

    left: int

    def __new__(cls, keep: int, left: int) -> Cut:
        cut = super().__new__(cls, keep)
        cut.left = left
        return cut


def share(x: Tensor) -> Tensor:
    """x (B, n), at least 0, divided by its sum; equal shares where the sum is 0."""
    total = x.sum(-1, keepdim=True)
    return torch.where(total > 0, x / total, 1 / x.shape[-1])


@by_parts
def flow(attention: Tensor, values: Tensor, cls_value: Tensor) -> Tensor:
    """Score of one block: (B, H, n) CLS row, (B, n, D) values, (B, D) value of CLS -> (B, n).

    (attention share + semantic share) * L1 norm of the mean over heads of the values. Semantic: mean over heads of
    softmax_j(v_cls . v_j) over CLS and patches, unscaled.
    """
    heads = attention.shape[1]
    v = values.unflatten(-1, (heads, -1))  # (B, n, H, d)
    c = cls_value.unflatten(-1, (heads, -1))  # (B, H, d)
    own = (c * c).sum(-1, keepdim=True)  # (B, H, 1)
    patches = torch.einsum("bnhd,bhd->bhn", v, c)
    semantic = torch.cat([own, patches], -1).softmax(-1)[..., 1:].mean(1)
    return (share(attention.mean(1)) + share(semantic)) * v.mean(2).abs().sum(-1)


def surplus(attention: Tensor, keep: int, left: int) -> int:
    """Tokens to drop at a cut `left` blocks before the last one: CLS row (B, H, n) -> count.

    round((n - K) / sqrt(left) * (1 - e^2)), halves to even, e = entropy of the attention / ln n. Of several images
    the largest count, as the official code does, so that all keep equally many.
    """
    p = share(attention.mean(1))
    n = p.shape[1]
    e = torch.special.entr(p).sum(-1) / torch.log(torch.tensor(float(n)))
    return int(((n - keep) / left**0.5 * (1 - e**2)).round().max())


@dataclass
class FlowCut(Pruner):
    """Cuts after every second block by a running score; how many depends on the entropy of the CLS attention.

    Source: github.com/TungChintao/FlowCut @ a2ecd24, `flowcut/{utils,modeling_clip}_flowcut.py`. The score halves
    each block: cum = (cum + score) / 2. Cuts after the block before the last that runs (exactly K stay) and after
    every second one before it; in CLIP-L after blocks 1, 3, ..., 21 of 23. Reads cls_attention, values, cls_value.

    Differences from the official code: zero attention counts as zero entropy or, where all is zero, as uniform,
    instead of failing; the full budget is the identity; images run one by one, as in a batch each would change
    with the others. LLaVA-NeXT's second cut inside the language model is not part of this method.
    """

    one_by_one: ClassVar[bool] = True

    def schedule(self, depth: int, n: int) -> dict[int, int]:
        lefts = {layer: depth - 2 - layer for layer in range(depth - 1)}
        return {layer: n if left % 2 else Cut(self.keeps(n), left) for layer, left in lefts.items()}

    def reduce_at(self, layer: int, tokens: VisualTokens, keep: int) -> VisualTokens:
        n = tokens.count
        if n <= self.keeps(tokens.patches):
            return tokens
        tokens = replace(tokens, carried={**tokens.carried, "flow": self.running(tokens)})
        left = keep.left if isinstance(keep, Cut) else 0
        if left and n > keep:
            keep = max(n - surplus(tokens.cls_attention, keep, left), int(keep))
        if n <= keep:
            return tokens
        return tokens.gather(top(tokens.carried["flow"], keep).sort(-1).values)

    def running(self, tokens: VisualTokens) -> Tensor:
        """The running score (B, n) with this block's score in it."""
        score = flow(tokens.cls_attention, tokens.read("values"), tokens.read("cls_value"))
        return 0.5 * tokens.carried["flow"] + 0.5 * score if "flow" in tokens.carried else score

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """The running score (B, n), for a tower so shallow that no block cuts to K."""
        return self.running(tokens)
