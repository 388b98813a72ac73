"""The paper's five baselines on the golden inputs, computed by the code that `configs/method/*.yaml` instantiates.

`CASES[name](seed, budget)` gives the fields of that golden, with the inputs mapped as the method's page says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pruning
from pruning.flowcut import Cut
from pruning.tokens import VisualTokens
from tests.golden_data.inputs import full_attention, make

Fields = dict[str, np.ndarray]
GRID, N = (24, 24), 576
HEADS, LAYERS = 4, 24
DEPTH = LAYERS - 1  # the last block is never read
PATCHES = torch.arange(N)[None]

made = cache(make)
attended = cache(lambda seed: full_attention(seed, made(seed)))


def batch(x: np.ndarray) -> Tensor:
    """One image as a batch of one."""
    return torch.from_numpy(x)[None]


def tokens_of(seed: int) -> VisualTokens:
    """All 576 patches with what a selection after the tower reads."""
    a = made(seed)
    features = {
        "cls_attention": batch(a["cls_attn"][:, 1:]),
        "keys": batch(a["keys"][1:]),
        "projected": batch(a["projected"]),
    }
    hidden = batch(a["hidden"])
    return VisualTokens(hidden[:, 1:], PATCHES, GRID, cls=hidden[:, 0], features=features)


def patches(index: Tensor) -> np.ndarray:
    """Sorted patch numbers of an index (1, n)."""
    return index[0].sort().values.numpy()


def visionzip(seed: int, budget: int) -> Fields:
    out = pruning.load("visionzip", budget).reduce(tokens_of(seed), None)
    dominant = pruning.visionzip.split(budget)[0]
    index = out.index[:, 1:]
    return {
        "indices": patches(index[:, : dominant - 1]),
        "contextual": index[0, dominant - 1 :].numpy(),
        "tokens": out.hidden[0].numpy(),
    }


def scope(seed: int, budget: int) -> Fields:
    tokens, pruner = tokens_of(seed), pruning.load("scope", budget)
    out = pruner.finish(tokens)
    return {
        "indices": out.index[0].numpy(),
        "order": pruner.select(tokens, None)[0].numpy(),
        "tokens": out.hidden[0].numpy(),
    }


def prunesid(pca: str, seed: int, budget: int) -> Fields:
    tokens, pruner = tokens_of(seed), pruning.load("prunesid", budget, pca=pca)
    out = pruner.reduce(tokens, None)
    return {
        "indices": patches(out.index[:, 1:]),
        "order": out.index[0, 1:].numpy(),
        "tokens": out.hidden[0].numpy(),
        "belong": pruner.belong(tokens)[0].numpy(),
    }


def holov(strips: str, seed: int, budget: int) -> Fields:
    tokens = tokens_of(seed)
    chosen = pruning.load("holov", budget, strips=strips).select(tokens, None)
    return {
        "indices": patches(chosen),
        "order": chosen[0].numpy(),
        "tokens": tokens.projected[0, chosen[0]].numpy(),
    }


def cut_step(left: int, seed: int, budget: int) -> Fields:
    """One cut on all patches, `left` blocks before the last cut; keys stand in for the values."""
    a = made(seed)
    features = {"values": batch(a["keys"][1:]), "cls_value": batch(a["keys"][0])}
    tokens = VisualTokens(
        batch(a["hidden"][1:]), PATCHES, GRID, features={"cls_attention": batch(a["cls_attn"][:, 1:]), **features}
    )
    out = pruning.load("flowcut", budget).reduce_at(0, tokens, Cut(budget, left))
    return {"indices": out.index[0].numpy(), "scores": out.carried["flow"][0].numpy()}


def flowcut(seed: int, budget: int) -> Fields:
    """The whole schedule on tokens that do not change."""
    a, pruner = made(seed), pruning.load("flowcut", budget)
    hidden = batch(a["hidden"])
    tokens, counts = VisualTokens(hidden[:, 1:], PATCHES, GRID, cls=hidden[:, 0]), [N]
    schedule = pruner.schedule(DEPTH, N)
    for layer in range(LAYERS):
        if layer in schedule:
            row = attended(seed)[:, layer].astype(np.float64) ** 4
            row = batch((row / row.sum(1, keepdims=True)).astype(np.float32))[..., 1:]
            values = batch(np.roll(a["keys"], 3 * layer, axis=1))
            tokens = seen(tokens, row[..., tokens.index[0]], values[:, 1 + tokens.index[0]], values[:, 0])
            tokens = pruner.reduce_at(layer, tokens, schedule[layer])
        counts.append(tokens.count)
    return {
        "indices": tokens.index[0].numpy(),
        "tokens": pruner.finish(tokens).hidden[0].numpy(),
        "counts": np.array(counts),
    }


def flowcut_enc(seed: int, budget: int) -> Fields:
    """The whole schedule inside a toy encoder of attention blocks."""
    pruner, x = pruning.load("flowcut", budget), batch(made(seed)["hidden"])
    tokens, counts, states = VisualTokens(x[:, 1:], PATCHES, GRID, cls=x[:, 0]), [N], []
    schedule = pruner.schedule(DEPTH, N)
    for layer in range(LAYERS):
        x, attention, values = block(seed, layer, x)
        tokens = tokens.with_hidden(x[:, 1:])
        if layer in schedule:
            tokens = seen(tokens, attention[:, :, 0, 1:], values[:, 1:], values[:, 0])
            tokens = pruner.reduce_at(layer, tokens, schedule[layer])
            x = torch.cat([x[:, :1], tokens.hidden], 1)
        counts.append(tokens.count)
        states.append(tokens)
    out = pruner.finish(states[DEPTH - 1])
    return {"indices": out.index[0].numpy(), "tokens": out.hidden[0].numpy(), "counts": np.array(counts)}


def seen(tokens: VisualTokens, attention: Tensor, values: Tensor, cls_value: Tensor) -> VisualTokens:
    """The tokens with what FlowCut reads after a block: (1, H, n), (1, n, D), (1, D)."""
    features = {"cls_attention": attention, "values": values, "cls_value": cls_value}
    return VisualTokens(tokens.hidden, tokens.index, GRID, cls=tokens.cls, features=features, carried=tokens.carried)


def block(seed: int, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bias-free attention block without MLP: (1, n, 64) -> output, attention (1, H, n, n), values (1, n, 64)."""
    rng = np.random.default_rng(seed * 1000 + 20000 + layer)
    weights = torch.from_numpy(rng.standard_normal((4, 64, 64)).astype(np.float32) / np.float32(8))
    z = F.layer_norm(x, x.shape[-1:])
    q, k, v = ((z @ w.T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in weights[:3])  # (1, H, n, 16)
    attention = (q * 0.25 @ k.mT).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    return x + mixed @ weights[3].T, attention, v.transpose(1, 2).flatten(2)


CASES: dict[str, Callable[[int, int], Fields]] = {
    "visionzip": visionzip,
    "scope": scope,
    "prunesid": partial(prunesid, "lowrank"),
    "prunesid_exact": partial(prunesid, "exact"),
    "holov": partial(holov, "fixed"),
    "holov_qwenrule": partial(holov, "qwen"),
    "flowcut": flowcut,
    "flowcut_enc": flowcut_enc,
    "flowcut_step": partial(cut_step, 0),
    "flowcut_step20": partial(cut_step, 20),
}
