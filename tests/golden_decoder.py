"""The goldens of the methods inside the language model, on the sequence of 5 system, 576 image and 7 text tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import pruning
from pruning.decoder import DecoderPruner, Look
from pruning.ops import top
from tests.golden_data.inputs import make

Fields = dict[str, np.ndarray]
HEADS = 4


def sequence(seed: int) -> tuple[Tensor, slice, slice]:
    """States (1, 588, 64) with the places of the image and of the question."""
    a = make(seed)
    x = np.concatenate([a["text"][:5], a["projected"], a["text"][5:]])
    return torch.as_tensor(x)[None], slice(5, 581), slice(581, 588)


def attention(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """Causal attention of 4 heads without rotation, q = k = x: (1, 4, rows, columns)."""
    q = x.unflatten(2, (HEADS, -1)).transpose(1, 2)  # (1, 4, 588, 16)
    logits = q @ q.transpose(2, 3) / q.shape[3] ** 0.5
    future = torch.ones(logits.shape[2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)[:, :, rows, columns]


def last_row(name: str) -> Callable[[int, int], Fields]:
    def case(seed: int, budget: int) -> Fields:
        x, image, question = sequence(seed)
        pruner = pruning.load(name, 576)
        score = pruner.rank(look(attention(x, question, image)))
        return {"order": top(score, budget)[0].numpy(), "indices": kept(pruner, x[:, image], score, budget)}

    return case


def look(rows: Tensor) -> Look:
    return Look(rows, torch.ones(rows.shape[0], rows.shape[2], dtype=torch.bool), lambda: torch.ones(()))


def kept(pruner: DecoderPruner, visual: Tensor, score: Tensor, budget: int) -> np.ndarray:
    return pruner.shrink(visual, score, budget)[0][0].numpy()


def sparsevlm(seed: int, budget: int) -> Fields:
    x, image, question = sequence(seed)
    pruner = pruning.load("sparsevlm", 576)
    asking = pruner.askers(x[:, image], x[:, question], torch.ones(1, 7, dtype=torch.bool))
    score = pruner.rank(Look(attention(x, question, image), asking, lambda: torch.ones(())))
    slots, merged = pruner.shrink(x[:, image], score, budget)
    return {
        "raters": asking[0].nonzero()[:, 0].numpy(),
        "indices": slots[0].numpy(),
        "tokens": merged[0].numpy(),
    }


def sparsevlm_plus(seed: int, budget: int) -> Fields:
    x, image, question = sequence(seed)
    pruner = pruning.load("sparsevlm", 576, version="plus")
    asking = pruner.askers(x[:, image], x[:, question], torch.ones(1, 7, dtype=torch.bool))
    scale = torch.linspace(0.5, 1.5, 28)[:, None, None]
    rows = attention(x, question, image).repeat(1, 7, 1, 1) * scale
    score = pruner.rank(Look(rows, asking, lambda: torch.ones(1, 1, 1)))  # the golden leaves the rotary bias out
    return {"indices": kept(pruner, x[:, image], score, budget)}


CASES: dict[str, Callable[[int, int], Fields]] = {
    "FastV": last_row("fastv"),
    "PyramidDrop": last_row("pyramiddrop"),
    "SparseVLM": sparsevlm,
    "SparseVLMplus": sparsevlm_plus,
}
