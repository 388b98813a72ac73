"""Seconds of each stage on the embedded model, over interleaved repeats."""

from __future__ import annotations

import itertools
from collections import defaultdict
from copy import copy
from pathlib import Path
from typing import Any

import torch
import yaml

import pruning
from scripts.benches._counts import kv_bytes, macs, peak_bytes
from scripts.benches._real_size import Timed

STAGES = ("image processing", "tower", "selection", "projector", "prefill", "decode", "scoring", "shift")


def load_mini() -> Any:
    """The embedded model in float32 on the CPU, prompted as in a run."""
    from models.guard import guard_torchvision
    from models.load import load

    guard_torchvision()
    model = yaml.safe_load(Path("configs/model/mini.yaml").read_text())
    return load(model["path"], model["prompt"], dtype="float32", device="cpu")


def measure(
    llava: Any, visual: Any, asked: list[tuple[dict, list[str]]], points: list[tuple[str, int]], batches: list[int],
    repeats: int,
) -> list[dict]:  # fmt: skip
    """One row a point and batch size: milliseconds an image of each stage, every repeat.

    Each call answers and scores one question an image from a cold cache. Points take turns within a repeat, so a busy
    moment meets all of them. What a method chooses inside the tower counts as selection.
    """
    images = [visual(doc)[0].convert("RGB") for doc, _ in itertools.islice(itertools.cycle(asked), max(batches))]
    texts = [[own[0]] for _, own in itertools.islice(itertools.cycle(asked), max(batches))]
    found: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for repeat, b, (name, k) in itertools.product(range(repeats + 1), batches, points):
        for stage, value in once(llava, images[:b], texts[:b], pruning.load(name, k)).items():
            if repeat:  # the first round warms up
                found[name, k, b][stage].append(1000 * value / b)
    rows = []
    for name, k in points:
        cost = arithmetic(llava, images[0], texts[0], pruning.load(name, k))
        rows += [{"method": name, "budget": k, "batch": b, **cost, "ms": dict(found[name, k, b])} for b in batches]
    return rows


def once(llava: Any, images: list[Any], texts: list[list[str]], pruner: Any) -> dict[str, float]:
    """Seconds of each stage of one call."""
    timed = Timed(pruner)
    llava.cache.clear()
    llava.seconds.clear()
    llava.answer(images, texts, pruner)
    stages = {name: llava.seconds[name] for name in STAGES if name != "scoring"}
    stages["tower"] -= timed.seconds
    stages["selection"] += timed.seconds
    llava.score(images, texts, [["yes"] for _ in texts], pruner)
    return stages | {"scoring": llava.seconds["scoring"]}


def uncached(llava: Any) -> Any:
    """The same model without a cache of tower states, whose memory comes in slabs."""
    from models.cache import StateCache
    from models.vision_tower import VisionTower

    other = copy(llava)
    other.cache = StateCache(0)
    other.tower = VisionTower(llava.model, other.cache)
    return other


def arithmetic(llava: Any, image: Any, asked: list[str], pruner: Any) -> dict[str, float]:
    """Visual tokens, MACs and FLOPs of one image with one question (answer and shift metrics aside), bytes of its
    keys and values, and the most bytes of tensors at a time.
    """
    llava.cache.clear()
    pixels = llava.pixels([image])
    kept: list[Any] = []
    tower = macs(lambda: kept.append(llava.prune(pixels, pruner, [asked])))
    with torch.no_grad():
        visual = llava.project(kept[0])
    rest = macs(lambda: llava.project(kept[0])) + macs(
        lambda: llava._pack(visual, [0], [llava.prompt_ids(asked[0])], pruner).prefill([1])
    )
    answers: list[Any] = []
    bare = uncached(llava)
    most = peak_bytes(lambda: answers.extend(bare.answer([image], [asked], pruner, 1, shifts=False)[0]))
    tokens = answers[0].visual_tokens
    count = {"visual_tokens": tokens, "kv_bytes": kv_bytes(llava, tokens), "peak_bytes": most}
    return count | {"gmac": (tower + rest) / 1e9, "gflop": 2 * (tower + rest) / 1e9}
