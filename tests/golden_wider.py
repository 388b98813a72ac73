"""The wider field's goldens, computed by the code that `configs/method/*.yaml` instantiates.

`CASES[name](seed, budget)` gives the fields of that golden. Names with a slash are the keys without a budget
(`PruMerge/adaptive`, `PruMergePlus/adaptive`, `ToMe/r23cls`: the budget is ignored) and CDPruner's pair of images
(`CDPruner/batch`: seeds `seed` and `seed + 1` as one batch).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import pruning
from pruning.prumerge import enrich, outliers, single_head_row
from pruning.prumerge_plus import adaptive_choice, fixed_choice
from pruning.tokens import Question, VisualTokens
from tests.golden_data.inputs import make

Fields = dict[str, np.ndarray]
GRID = (24, 24)
N = GRID[0] * GRID[1]


def visual(hidden: np.ndarray | Tensor, **features: np.ndarray | Tensor) -> VisualTokens:
    """Tokens of a batch of one from arrays without a batch axis."""
    x = torch.as_tensor(hidden)[None]
    lazily = {name: torch.as_tensor(value)[None] for name, value in features.items()}
    return VisualTokens(x, torch.arange(x.shape[1])[None], GRID, features=lazily)


def asked(embeddings: np.ndarray, clip: np.ndarray | None = None, batch: int = 1) -> Question:
    """A question whose tokens are all real, with text vectors `clip` (M, D) of the real CLIP tower."""
    x = torch.as_tensor(embeddings).expand(batch, -1, -1)
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    return Question(x, real, real, None if clip is None else torch.as_tensor(clip).expand(batch, -1, -1), True)


def picked(order: Tensor) -> Fields:
    """`order` as picked and `indices` sorted, of slots (1, k)."""
    return {"order": order[0].numpy(), "indices": order[0].sort().values.numpy()}


def divprune(seed: int, budget: int) -> Fields:
    projected = make(seed)["projected"]
    return picked(pruning.load("divprune", budget).select(visual(projected, projected=projected), None))


def cdpruner(seed: int, budget: int) -> Fields:
    return {"indices": _cdpruner([seed], budget, "image")[0]}


def cdpruner_batch(seed: int, budget: int) -> Fields:
    return {"indices": _cdpruner([seed, seed + 1], budget, "batch")}


def _cdpruner(seeds: list[int], budget: int, normalise: str) -> np.ndarray:
    arrays = [make(seed, dim=256) for seed in seeds]
    x = torch.stack([torch.as_tensor(a["projected"]) for a in arrays])
    tokens = VisualTokens(x, torch.arange(N).expand(len(x), -1), GRID, features={"projected": x, "clip": x})
    text = arrays[0]["text"]
    slots = pruning.load("cdpruner", budget, normalise=normalise).select(tokens, asked(text, text[:2], len(x)))
    return slots.sort(dim=1).values.numpy()


def vispruner(important: float, precision: str) -> Callable[[int, int], Fields]:
    def case(seed: int, budget: int) -> Fields:
        a = make(seed)
        tokens = visual(a["hidden"][1:], cls_attention=a["cls_attn"][:, 1:])
        pruner = pruning.load("vispruner", budget, important=important, precision=precision)
        return {"indices": picked(pruner.select(tokens, None))["indices"]}

    return case


def _prumerge_tokens(seed: int) -> VisualTokens:
    a = make(seed)
    hidden, keys = a["hidden"], a["keys"]
    return visual(hidden[1:], next_keys=keys[1:], cls_next_key=keys[0], cls_next_query=hidden[0])


def _enriched(tokens: VisualTokens, order: Tensor) -> Fields:
    states = enrich(tokens.hidden, tokens.read("next_keys"), single_head_row(tokens), order)
    return {**picked(order), "tokens": states[0].numpy()}


def prumerge(seed: int, budget: int) -> Fields:
    tokens, pruner = _prumerge_tokens(seed), pruning.load("prumerge", budget)
    out = pruner.reduce(tokens, None)
    return {**picked(out.index[:, :-1]), "tokens": out.hidden[0].numpy()}


def prumerge_adaptive(seed: int, budget: int) -> Fields:
    attention = single_head_row(_prumerge_tokens(seed))[0]
    return prumerge(seed, outliers(attention) + 1)


def prumerge_plus_fixed(seed: int, budget: int) -> Fields:
    tokens = _prumerge_tokens(seed)
    return _enriched(tokens, fixed_choice(single_head_row(tokens), budget // 2, budget // 2, distinct=False))


def prumerge_plus_adaptive(seed: int, budget: int) -> Fields:
    tokens = _prumerge_tokens(seed)
    return _enriched(tokens, adaptive_choice(single_head_row(tokens)[0])[None])


def trim(seed: int, budget: int) -> Fields:
    a = make(seed)
    x = a["hidden"][1:]
    out = pruning.load("trim", budget).reduce(visual(x, clip=x), asked(a["text"], a["text"].mean(0, keepdims=True)))
    return {"indices": out.index[0, :-1].numpy(), "tokens": out.hidden[0].numpy()}


def dart(seed: int, budget: int) -> Fields:
    a = make(seed)
    tokens = visual(a["projected"], projected=a["projected"], keys=a["keys"][1:])
    official = 4 + 8 * (budget // 8)  # upstream cannot hit K
    slots = pruning.load("dart", official, start=5).select(tokens, asked(a["text"][5:]))
    return {"indices": picked(slots)["indices"]}


def _tome_tokens(x: np.ndarray, keys: np.ndarray) -> VisualTokens:
    """One head: the metric is the keys as they are."""
    return visual(x, keys=keys, cls_attention=np.zeros((1, len(x)), np.float32))


def tome(seed: int, budget: int) -> Fields:
    a = make(seed)
    out = pruning.load("tome", budget).reduce(_tome_tokens(a["hidden"][1:], a["keys"][1:]), None)
    return {
        "tokens": out.hidden[0].numpy(),
        "size": out.size[0].long().numpy(),
        "owner": out.trace["owner"][0].numpy(),
        "indices": out.index[0].sort().values.numpy(),
    }


def tome_block(seed: int, budget: int) -> Fields:
    """One block with a class token, 23 merges; the class token, which the runner keeps, comes first."""
    a = make(seed)
    pruner = pruning.load("tome", N - 23)
    out = pruner.reduce_at(0, _tome_tokens(a["hidden"][1:], a["keys"][1:]), N - 23)
    return {
        "tokens": np.concatenate([a["hidden"][:1], out.hidden[0].numpy()]),
        "size": np.concatenate([[1], out.size[0].long().numpy()]),
    }


CASES: dict[str, Callable[[int, int], Fields]] = {
    "DivPrune": divprune,
    "CDPruner": cdpruner,
    "CDPruner/batch": cdpruner_batch,
    "VisPruner": vispruner(0.5, "float64"),
    "VisPruner_r0.75": vispruner(0.75, "float64"),
    "VisPruner_f32": vispruner(0.5, "float32"),  # information only: upstream's float32 choice is the machine's
    "PruMerge": prumerge,
    "PruMerge/adaptive": prumerge_adaptive,
    "PruMergePlusFixed": prumerge_plus_fixed,
    "PruMergePlus": prumerge_plus_adaptive,
    "PruMergePlus/adaptive": prumerge_plus_adaptive,
    "TRIM": trim,
    "DART": dart,
    "ToMe": tome,
    "ToMe/r23cls": tome_block,
}
