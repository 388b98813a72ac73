"""Selection, tower, projector and prefill in the shapes of LLaVA-1.5-7B, random weights, on this machine."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pruning
from pruning.decoder import DecoderPruner
from pruning.tokens import Question
from scripts.benches._counts import macs
from scripts.benches._report import quartiles, seconds
from scripts.benches._shapes import DECODER_LAYERS, REAL_LAYERS

TEXT = 64  # tokens of prompt and question beside the image
BUDGETS = (576, 384, 288, 192, 128, 64, 32, 16)


class Timed:
    """Counts the seconds of a method's steps: what is chosen, wherever it is chosen."""

    def __init__(self, pruner: Any) -> None:
        self.seconds = 0.0
        self.pruner = pruner
        inner = pruner.reduce_at
        pruner.reduce_at = lambda *args: self.count(lambda: inner(*args))  # on this instance only

    def count(self, work: Any) -> Any:
        """The result of `work`, its time added."""
        kept: list[Any] = []
        self.seconds += seconds(lambda: kept.append(work()))
        return kept[0]


@torch.no_grad()
def measure(model: Any, methods: list[str], repeats: int) -> dict:
    """Medians in seconds for one image: tower and selection of each method at 16, prefill and projector by tokens."""
    from models.cache import StateCache
    from models.vision_tower import VisionTower

    g = torch.Generator().manual_seed(1)
    pixels = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8, generator=g), 336, mode="bilinear")
    words = torch.ones(1, 12, dtype=torch.bool)
    question = Question(
        torch.randn(1, 12, 4096, generator=g), words, words, clip=torch.randn(1, 1, 4096, generator=g)
    )
    tower = VisionTower(model, StateCache())
    prefill, project, found = defaultdict(list), defaultdict(list), defaultdict(lambda: defaultdict(list))
    cold = []
    for _ in range(repeats + 1):  # the first round warms up
        tower.cache.clear()
        cold.append(seconds(lambda: tower.full(pixels)))
        for k in BUDGETS:
            features = torch.randn(1, k, 1024, generator=g)
            project[k].append(seconds(lambda x=features: tower.projector(x)))
            prefill[k].append(seconds(lambda n=k: decoder(model, torch.randn(1, TEXT + n, 4096, generator=g))))
        for name in methods:
            method = pruning.load(name, 16)
            if isinstance(method, DecoderPruner) or method.keeps(576) != 16:  # controls that ignore the budget
                continue
            tower_s, selection = one(tower, pixels, question, method)
            found[name]["tower"].append(tower_s)
            found[name]["selection"].append(selection)
    middle = cls_share(tower, pixels, repeats)
    middle |= {"tower": quartiles(cold[1:])[1], "projector": medians(project), "prefill": medians(prefill)}
    return middle | {"methods": {n: {s: quartiles(v[1:]) for s, v in own.items()} for n, own in found.items()}}


def cls_share(tower: Any, pixels: Tensor, repeats: int) -> dict[str, float]:
    """What the CLS row costs beside its block, by time and by arithmetic."""
    from models.vision_tower import cls_row

    block, x = tower.blocks[0], tower.embed(pixels)
    works = {"block": lambda: tower.block(0, x), "row": lambda: cls_row(block.self_attn, block.layer_norm1(x))}
    taken = {name: [seconds(work) for _ in range(5 * repeats)] for name, work in works.items()}
    middle = {name: quartiles(values)[1] for name, values in taken.items()}
    return {
        "cls_time_share": middle["row"] / middle["block"],
        "cls_mac_share": macs(works["row"]) / macs(works["block"]),
    }


def one(tower: Any, pixels: Tensor, question: Question, method: Any) -> tuple[float, float]:
    """Seconds of the blocks that the method still needs, and of its choosing.

    A method that acts on the last layer only starts from the cache, as a sweep does: its tower is the unpruned one,
    counted there; what it reads of the last block (the CLS row, keys) is part of its choosing.
    """
    timed, kept = Timed(method), []
    if not tower.schedule(method) and not method.resizes_image:
        tower.full(pixels)
        kept.append(tower.survivors(pixels, method))
        spent = 0.0
    else:
        tower.cache.clear()
        spent = seconds(lambda: kept.append(tower.survivors(pixels, method))) - timed.seconds
    timed.count(lambda: method.finish(kept[0], question if method.reads_question else None))
    return spent, timed.seconds


def decoder(model: Any, x: Tensor) -> Tensor:
    """Prefill of embeddings (1, T, 4096) through the two layers."""
    return model.model.language_model(inputs_embeds=x, use_cache=True).last_hidden_state


def medians(values: dict[int, list[float]]) -> dict[int, float]:
    return {k: quartiles(v[1:])[1] for k, v in values.items()}


def judge(found: dict) -> dict:
    """Adds what pruning to 16 saves, the share of it that choosing costs, and the break-even budget.

    The break-even budget is the largest at which tower, choosing, projector and the prefill extrapolated to 32 layers
    (linear between the measured budgets) take less than without pruning. Choosing is taken at 16 tokens.
    """
    whole = {k: v * REAL_LAYERS / DECODER_LAYERS for k, v in found["prefill"].items()}
    known = sorted(whole)
    after = np.interp(range(577), known, [found["projector"][k] + whole[k] for k in known])  # by tokens
    full = found["tower"] + after[576]
    for own in found["methods"].values():
        tower, chosen = own["tower"][1] or found["tower"], own["selection"][1]
        own["saved"] = full - tower - after[16]
        own["share"] = chosen / own["saved"] if own["saved"] > 0 else None
        pays = np.flatnonzero(tower + chosen + after[:576] < full)
        own["break_even"] = int(pays[-1]) if len(pays) else None
    return found | {"prefill_32_layers": whole, "unpruned": full}
