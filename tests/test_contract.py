"""The contract of every method of `configs/method/`: exactly K distinct tokens in raster order, on any input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pruning
from models.guard import guard_torchvision
from models.vision_tower import VisionTower
from pruning import Pruner, Question, VisualTokens
from pruning.decoder import DecoderPruner
from pruning.tokens import concatenate
from tests.golden_data.inputs import make

BUDGETS = (1, 16, 17, 64, 192, 575, 576)
GRID, WIDTH, DEPTH = (24, 24), 64, 23
N = GRID[0] * GRID[1]
METHODS = {name: pruning.load(name, 16) for name in pruning.names()}
BEFORE_LLM = {name: method for name, method in METHODS.items() if not isinstance(method, DecoderPruner)}
ON_TOKENS = [name for name, method in BEFORE_LLM.items() if not method.resizes_image]
IN_TOWER = [name for name, method in BEFORE_LLM.items() if method.resizes_image or method.schedule(DEPTH, N)]
MAPS = torch.randn(6, WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
Scene = dict[str, Tensor]


# --- inputs -----------------------------------------------------------------------------------------------
def scene(seed: int) -> Scene:
    """A structured image: states (1 + N, D), attention (H, N), text (T, D)."""
    a = make(seed, dim=WIDTH)
    return {
        "states": torch.as_tensor(a["hidden"]),
        "attention": torch.as_tensor(a["cls_attn"])[:, 1:],
        "text": torch.as_tensor(a["text"]),
    }


def equal() -> Scene:
    return scene(3) | {"states": scene(3)["states"][5].expand(1 + N, -1)}


def opposite_clusters() -> Scene:
    side = torch.where(torch.arange(1 + N) % 3 == 0, 1.0, -1.0)
    return scene(3) | {"states": side[:, None] * scene(3)["states"][5]}


def balanced_clusters() -> Scene:
    """Two opposite points, equally often: the mean of all is exactly zero."""
    side = torch.where(torch.arange(1 + N) % 2 == 0, 1.0, -1.0)
    return scene(3) | {"states": side[:, None] * scene(3)["states"][5]}


def one_huge() -> Scene:
    states = scene(4)["states"].clone()
    states[100] *= 1e4
    return scene(4) | {"states": states}


def rank_one() -> Scene:
    length = 0.1 + scene(5)["states"][:, :1].abs()
    return scene(5) | {"states": length * scene(5)["states"][5]}


def constant_attention() -> Scene:
    return scene(6) | {"attention": torch.full((4, N), 1 / (N + 1))}


def no_attention() -> Scene:
    return scene(6) | {"attention": torch.zeros(4, N)}


def zero_text() -> Scene:
    return scene(6) | {"text": torch.zeros(12, WIDTH)}


ADVERSARIAL = (
    equal,
    opposite_clusters,
    balanced_clusters,
    one_huge,
    rank_one,
    constant_attention,
    no_attention,
    zero_text,
)


def mapped(x: Tensor, i: int) -> Tensor:
    """(B, n, D) -> (B, n, D), each image by itself: one product over the batch would round by its size."""
    return torch.stack([image @ MAPS[i] for image in x])


def batch(scenes: list[Scene], dtype: torch.dtype) -> tuple[VisualTokens, Question]:
    """Every feature that the tower offers, as linear maps of the states, and the questions."""
    x = torch.stack([s["states"] for s in scenes])  # (B, 1 + N, D)
    keys, values, next_keys, queries = (mapped(x, i) for i in range(4))
    features = {
        "cls_attention": torch.stack([s["attention"] for s in scenes]),
        "keys": keys[:, 1:],
        "values": values[:, 1:],
        "cls_value": values[:, 0],
        "next_keys": next_keys[:, 1:],
        "cls_next_key": next_keys[:, 0],
        "cls_next_query": queries[:, 0],
    }
    tokens = VisualTokens(
        x[:, 1:].to(dtype),
        torch.arange(N).expand(len(x), -1),
        GRID,
        cls=x[:, 0].to(dtype),
        seed=(x.double().sum((1, 2)).abs() * 1000).round().long(),
        features={name: value.to(dtype) for name, value in features.items()},
    )
    text = torch.stack([s["text"] for s in scenes]).to(dtype)
    real = torch.ones(text.shape[:2], dtype=torch.bool)
    real[:, -2:] = False  # padding
    content = real & text.ne(0).any(-1) & (torch.arange(text.shape[1]) > 2)
    return projected(tokens), Question(text * real[..., None], real, content, text[:, 3:6])


def projected(tokens: VisualTokens) -> VisualTokens:
    """What the runner adds: the projector's view of the states."""
    space = mapped(tokens.hidden.float(), 4)
    return replace(tokens, features={**tokens.features, "projected": space, "clip": space})


def prune(method: Pruner, tokens: VisualTokens, question: Question) -> VisualTokens:
    """The method over a tower whose blocks change nothing: states and features stay as the method left them."""
    if method.one_by_one and len(tokens.hidden) > 1:  # as the runner does
        each = [torch.tensor([row]) for row in range(len(tokens.hidden))]
        return concatenate([prune(method, tokens.rows(row), question) for row in each])
    schedule = {} if method.keeps(N) == N else method.schedule(DEPTH, N)
    for layer, keep in schedule.items():
        tokens = projected(method.reduce_at(layer, tokens, keep))
    return method.finish(tokens, question)


# --- checks -----------------------------------------------------------------------------------------------
def check(method: Pruner, out: VisualTokens, dtype: torch.dtype) -> None:
    keep = method.keeps(N)
    assert out.hidden.shape[1] == out.index.shape[1] == keep
    assert out.hidden.dtype == dtype
    steps = out.index.diff(dim=1)
    assert (steps > 0).all(), "indices repeat or are not in raster order"  # so at most one -1, the first
    if keep:
        assert out.index.min() >= -1 and out.index.max() < N
        assert out.hidden.isfinite().all()
        assert out.hidden.ne(0).any(-1).all(), "a zero vector"


def same(a: VisualTokens, b: VisualTokens, row: int) -> None:
    """Row `row` of `a` is the only row of `b`."""
    assert torch.equal(a.index[row], b.index[0])
    torch.testing.assert_close(a.hidden[row], b.hidden[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ON_TOKENS)
def test_structured(name: str, dtype: torch.dtype) -> None:
    scenes = [scene(seed) for seed in range(3)]
    for budget in BUDGETS:
        method = pruning.load(name, budget)
        some = scenes[:2] if budget == 575 else scenes  # greedy methods take 575 steps
        together, alone = (prune(method, *batch(few, dtype)) for few in (some, some[1:2]))
        check(method, together, dtype)
        check(method, alone, dtype)
        same(together, alone, 1)
        if budget == 17:
            assert torch.equal(together.hidden, prune(method, *batch(some, dtype)).hidden), "not deterministic"


@pytest.mark.parametrize("name", ON_TOKENS)
def test_adversarial(name: str) -> None:
    scenes = [make_scene() for make_scene in ADVERSARIAL]
    for budget in BUDGETS:
        method = pruning.load(name, budget)
        some = scenes[::3] if budget == 575 else scenes  # greedy methods take 575 steps: three scenes will do
        check(method, prune(method, *batch(some, torch.float32)), torch.float32)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_adversarial_alone(name: str) -> None:
    scenes, method = [make_scene() for make_scene in ADVERSARIAL], pruning.load(name, 17)
    for dtype in (torch.float32, torch.bfloat16):
        together = prune(method, *batch(scenes, dtype))
        check(method, together, dtype)
        for row, one in enumerate(scenes):
            same(together, prune(method, *batch([one], dtype)), row)


# --- the real tower ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def tower(request: pytest.FixtureRequest) -> VisionTower:
    """A random LLaVA with a 576-patch CLIP of 5 useful blocks."""
    guard_torchvision()
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2, image_size=96, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    return VisionTower(LlavaForConditionalGeneration(config).to(request.param).eval())


@pytest.mark.parametrize("name", IN_TOWER)
@torch.no_grad()
def test_in_the_real_tower(name: str, tower: VisionTower) -> None:
    dtype = tower.projector.linear_1.weight.dtype
    pixels = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    _, question = batch([scene(seed) for seed in range(3)], dtype)
    question = replace(question, embeddings=question.embeddings[..., :32], clip=question.clip[..., :32])
    for budget in BUDGETS:
        method = pruning.load(name, budget)
        for images in (3, 1):
            asked = Question(*(getattr(question, f)[:images] for f in ("embeddings", "mask", "content", "clip")))
            check(method, method.finish(tower.survivors(pixels[:images], method), asked), dtype)
