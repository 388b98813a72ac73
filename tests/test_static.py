"""What a GPU wants, as far as a CPU can show it: fixed shapes with the same answers, fused attention, bf16."""

from __future__ import annotations

import gc
import weakref
from copy import copy
from itertools import chain

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

import pruning
from eval.lmms_model import PrunedLlava
from models.load import load
from models.static import CHUNK, SHAPES, StaticStep, StaticSteps, bucket
from tests import tiny
from tests.conftest import PROMPT, ROOT
from tests.test_speed import Shapes


def static(llava, capture: bool = False):
    """The same model, decoding in fixed shapes."""
    other = copy(llava)
    other.static = StaticSteps(on=True, capture=capture)
    return other


def unequal(scenes) -> tuple[list, list[list[str]]]:
    """Three images with 3, 1 and 2 questions of unequal length."""
    long = "Is there a very large red circle to the left of the blue star in this image?"
    return [s[0] for s in scenes[:3]], [scenes[0][1], [long], scenes[2][1][:2]]


def packed(llava, scenes, which: list[int], pruner):
    """A prefilled pack: image `which[i]` with i + 1 questions."""
    pixels = llava.pixels([scenes[i][0] for i in which])
    asked = [scenes[i][1][: n + 1] for n, i in enumerate(which)]
    owner = [row for row, own in enumerate(asked) for _ in own]
    prompts = [llava.prompt_ids(q) for q in chain.from_iterable(asked)]
    pack = llava._pack(llava.project(llava.prune(pixels, pruner)), owner, prompts, pruner)
    pack.prefill([1] * len(owner))
    return pack


def same_answers(a, b) -> None:
    for x, y in zip(chain.from_iterable(a), chain.from_iterable(b), strict=True):
        assert x.text == y.text and torch.equal(x.first_logits, y.first_logits) and x.index == y.index


# --- the same answers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["cls_attention", "acgr_tatcs"])
def test_answers_are_those_of_the_growing_cache(llava, scenes, name, dtype) -> None:
    grows, (images, asked), pruner = tiny.converted(llava, dtype), unequal(scenes), pruning.load(name, 16)
    fixed = static(grows)
    for inference in (True, False):  # the second batch finds its shape, made in another mode
        with torch.inference_mode(inference):
            same_answers(fixed.answer(images, asked, pruner), grows.answer(images, asked, pruner))
    assert len(fixed.static.steps) == 1 and not grows.static.steps


@pytest.mark.parametrize("name", ["cls_attention", "trim"])
def test_long_answers_move_on_to_longer_shapes(both, monkeypatch, name) -> None:
    """No token ends an answer; the crops give rows of unequal length."""
    (llava, budget), tokens = both, 2 * CHUNK + 8
    monkeypatch.setattr(llava.model.generation_config, "eos_token_id", -1)
    fixed, pruner = static(llava), pruning.load(name, budget)
    asked = [[q] * n for n, q in enumerate(tiny.QUESTIONS[:3], 1)]
    answers = fixed.answer(tiny.pictures(3), asked, pruner, max_new_tokens=tokens)
    same_answers(answers, llava.answer(tiny.pictures(3), asked, pruner, max_new_tokens=tokens))
    ((_, seats, columns),) = fixed.static.steps  # the shorter ones went when memory had to grow
    assert columns > (tokens - 1) * seats


@torch.no_grad()
def test_every_step_has_the_logits_of_the_growing_cache(llava, scenes) -> None:
    pruner, g = pruning.load("cls_attention", 16), torch.Generator().manual_seed(0)
    for which in ([0, 1, 2], [3, 2]):
        pack, other = (packed(llava, scenes, which, pruner) for _ in range(2))
        step = StaticSteps(on=True, capture=False).follow(other, CHUNK + 3)
        for _ in range(CHUNK + 3):
            token = torch.randint(5, 84, (pack.questions,), generator=g)
            torch.testing.assert_close(step(token), pack.step(token), atol=1e-3, rtol=1e-3)


# --- fixed shapes -------------------------------------------------------------------------------------------
def tensors(step: StaticStep) -> list[tuple]:
    """Where and what each tensor of a step is."""
    cache = chain.from_iterable((x.keys, x.values, x.cumulative_length) for x in step.cache.layers)
    own = [x for x in vars(step).values() if isinstance(x, torch.Tensor)]
    return [(x.data_ptr(), x.shape, x.stride(), x.dtype) for x in (*own, *cache)]


@torch.no_grad()
def test_no_step_of_any_batch_differs_in_shape_or_place(llava, scenes) -> None:
    """The same operations on the same shapes, none of which reads a value: what a CUDA graph needs."""
    store, pruner = StaticSteps(on=True, capture=False), pruning.load("cls_attention", 16)
    seen = []
    for which in ([0, 1], [2, 3], [3, 0]):
        step = store.follow(packed(llava, scenes, which, pruner), 6)
        assert step(torch.full((3,), 5)).isfinite().all()
        (own,) = store.steps.values()
        for _ in range(5):
            with Shapes() as shapes:
                own.run()
            seen.append((tensors(own), shapes.seen))
        store.memory.fill_(torch.nan)  # what one batch leaves there must not matter to the next
    assert all(x == seen[0] for x in seen) and len(seen[0][1]) > 100
    assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & {op for op, _ in seen[0][1]}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_the_step_compiles_whole_and_once(llava, scenes, monkeypatch, backend) -> None:
    graphs = []

    def counting(module, inputs):
        graphs.append(module)
        return lookup_backend(backend)(module, inputs)

    torch._dynamo.reset()
    run = torch.compile(StaticStep.run, fullgraph=True, dynamic=False, backend=counting)
    monkeypatch.setattr(StaticStep, "run", run)
    store, pruner = StaticSteps(on=True, capture=False), pruning.load("cls_attention", 16)
    for which in ([0, 1], [2, 3]):
        pack, other = (packed(llava, scenes, which, pruner) for _ in range(2))
        step = store.follow(other, 5)
        for token in range(5, 10):
            said = torch.full((3,), token)
            torch.testing.assert_close(step(said), pack.step(said), atol=1e-3, rtol=1e-3)
    assert len(graphs) == 1


@torch.no_grad()
def test_shapes_are_few_and_share_one_memory(llava, scenes) -> None:
    store, pack = StaticSteps(on=True, capture=False), packed(llava, scenes, [0], pruning.load("blank", 1))
    columns = [store._load(pack, 128 * n).mask.shape[3] for n in range(SHAPES + 2, 0, -1)]
    assert len(store.steps) == SHAPES and columns == sorted(set(columns), reverse=True)
    assert len({step.memory.data_ptr() for step in store.steps.values()}) == 1
    store._load(pack, 128 * (SHAPES + 3))  # memory grows, and the others, whose addresses are gone, are not kept
    assert len(store.steps) == 1
    sizes = [bucket(n) for n in range(1, 200)]
    assert sizes[:8] == [*range(1, 9)] and len(set(sizes)) < 30
    assert all(n <= size < 1.25 * n for n, size in enumerate(sizes, 1))


# --- where it does not work ---------------------------------------------------------------------------------
@pytest.mark.skipif(torch.cuda.is_available(), reason="here a capture fails for real")
def test_a_capture_that_fails_is_said_once_and_done_without(llava, scenes, caplog) -> None:
    fixed, (images, asked), pruner = static(llava, capture=True), unequal(scenes), pruning.load("cls_attention", 16)
    for _ in range(3):
        same_answers(fixed.answer(images, asked, pruner), llava.answer(images, asked, pruner))
    assert [r.message[:29] for r in caplog.records] == ["decoding without CUDA graphs:"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["cls_attention", "acgr_tatcs"])
def test_a_graph_says_what_the_growing_cache_does(scenes, name) -> None:
    fixed = load(str(ROOT / "models" / "mini"), PROMPT, dtype="float32", device="cuda")
    grows, (images, asked), pruner = copy(fixed), unequal(scenes), pruning.load(name, 16)
    grows.static = StaticSteps(on=False, capture=False)
    for _ in range(3):
        same_answers(fixed.answer(images, asked, pruner), grows.answer(images, asked, pruner))
    assert all(step.graph is not None for step in fixed.static.steps.values()) and fixed.static.steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_method_answers_on_a_gpu(scenes) -> None:
    llava, (images, asked) = load(str(ROOT / "models" / "mini"), PROMPT, device="cuda"), unequal(scenes)
    for name in pruning.names():
        answers = llava.answer(images, asked, pruning.load(name, 192))  # inside the language model 16 is out of reach
        assert not any(answer.failed for answer in chain.from_iterable(answers)), name


def test_out_of_memory_frees_the_shapes_first_and_then_halves(llava, scenes) -> None:
    fixed, pruner = static(llava), pruning.load("cls_attention", 16)
    lm = PrunedLlava(fixed, pruner, 4, None, "cls_attention 16")
    asked, sizes, held = [s[1] for s in scenes], [], []

    def short(batch: list, images: list) -> list:
        gc.collect()
        assert all(ref() is None for ref in held)  # nothing of the attempt that failed is left
        sizes.append(len(batch))
        answers, room = fixed.answer(images, [asked[i] for i in batch], pruner), torch.zeros(1)
        if len(batch) > 2:
            held.append(weakref.ref(room))
            raise torch.OutOfMemoryError("as a GPU would say")
        return answers

    images = [s[0] for s in scenes]
    halves = [llava.answer(images[i : i + 2], asked[i : i + 2], pruner) for i in (0, 2)]
    same_answers(lm._halving([0, 1, 2, 3], images, short), chain(*halves))
    assert sizes == [4, 4, 2, 2] and not fixed.static.on and fixed.static.memory is None


# --- the rest of a GPU's path -------------------------------------------------------------------------------
@torch.no_grad()
def test_attention_is_fused_everywhere(both, monkeypatch) -> None:
    """Tower, prefix, questions (with a mask of their own) and two steps: one fused operation a layer and pass."""
    llava, pruner = both[0], pruning.load("cls_attention", both[1])
    monkeypatch.setattr(llava.model.generation_config, "eos_token_id", -1)
    for one in (llava, static(llava)):
        one.cache.clear()
        with Shapes() as shapes:
            one.answer(tiny.pictures(2), [["is there a 5?"] * 2] * 2, pruner, max_new_tokens=3)
        attention = [op for op, _ in shapes.seen if "scaled_dot_product" in op]
        assert all("flash_attention" in op for op in attention)
        tower = len(attention) - 4 * len(llava.language.layers)
        assert tower > 0 and tower % llava.tower.depth == 0
        softmax = [x[0] for op, x in shapes.seen if "softmax" in op]
        assert softmax and all(len(shape) == 3 for shape in softmax)  # CLS rows (B, H, 1 + n), never a map


@torch.no_grad()
def test_prefill_and_steps_look_at_no_value_and_a_gpu_gets_bfloat16() -> None:
    """`meta` stands for the GPU: no CPU, and reading a value there is an error."""
    llava = load(str(ROOT / "models" / "mini"), PROMPT, device="meta")
    visual = torch.zeros(2, 16, llava.language.config.hidden_size, dtype=torch.bfloat16, device="meta")
    prompts = [llava.prompt_ids(q) for q in tiny.QUESTIONS[:3]]
    pack = llava._pack(visual, [0, 0, 1], prompts, pruning.load("vanilla", 576))
    logits = pack.prefill([1, 1, 1])[:, 0]
    for step in (pack.step, StaticSteps(on=True, capture=False).follow(pack, 2)):
        for _ in range(2):
            logits = step(logits.argmax(-1))
            assert logits.shape == (3, 84) and logits.dtype is torch.bfloat16 and logits.device.type == "meta"
