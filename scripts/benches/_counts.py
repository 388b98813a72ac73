"""What a configuration costs by arithmetic: multiply-accumulates, key-value bytes, the roofline of a GPU.

MACs are counted, never estimated from time: matrix products and convolutions, attention as its two products.
FLOPs are twice that, the usual convention; papers that print MACs as "FLOPs" print half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

H100 = {"name": "H100 SXM", "flops": 989e12, "bytes": 3.35e12}  # dense bfloat16, HBM3, NVIDIA's data sheet
LLAMA_7B = {"layers": 32, "width": 4096, "mlp": 11008, "vocabulary": 32064}


@torch.no_grad()
def macs(work: Callable[[], object]) -> float:
    """Multiply-accumulates of one call (attention as plain products: the counter knows no fused CPU kernel)."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that the tensors of one call held at a time on the CPU; what was there before does not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    found = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def kv_bytes(llava: Any, visual_tokens: float) -> float:
    """Bytes that an image's visual tokens hold in the key-value cache, at `visual_tokens` a layer."""
    c = llava.model.config.text_config
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return visual_tokens * c.num_hidden_layers * 2 * c.num_key_value_heads * head * llava.embed.weight.element_size()


def prefill_7b(tokens: int) -> dict[str, float]:
    """FLOPs and bytes of a 7B prefill in bfloat16 (batch 1), and its least time on an H100: a model's figure."""
    n, d, m, v = LLAMA_7B["layers"], LLAMA_7B["width"], LLAMA_7B["mlp"], LLAMA_7B["vocabulary"]
    weights = n * (4 * d * d + 3 * d * m)
    flops = 2 * (tokens * weights + n * tokens * tokens * d + d * v)  # causal attention: half of both products
    moved = 2 * (weights + d * v) + 2 * tokens * d * n * 2  # weights once, keys and values written
    milliseconds = 1000 * max(flops / H100["flops"], moved / H100["bytes"])
    return {"tokens": tokens, "tflop": flops / 1e12, "gigabytes": moved / 1e9, "roofline_ms": milliseconds}
