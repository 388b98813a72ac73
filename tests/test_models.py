"""Exactness: the pruned path is the model's own code, and nothing of it outlives the context manager."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

import pruning
from models.attach import attach
from models.cache import StateCache
from models.rows import Rows
from models.vision_tower import VisionTower, cls_row
from tests.conftest import PROMPT
from tests.tiny import converted


def batch(llava, scenes, n=2):
    """Processor output for the first question of `n` images."""
    images = [image for image, _, _ in scenes[:n]]
    texts = [PROMPT.format(question=questions[0]) for _, questions, _ in scenes[:n]]
    return llava.processor(images=images, text=texts, return_tensors="pt", padding=True)


def generate(model, inputs):
    return model.generate(**inputs, max_new_tokens=6, do_sample=False)


def plain_features(model, pixels):
    """The unpruned tower's output at the layer that the projector reads, by the model's own forward."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[
        model.config.vision_feature_layer
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_budget_is_the_plain_model_bit_for_bit(llava, scenes, dtype):
    model, inputs = converted(llava, dtype).model, batch(llava, scenes)
    pixels = inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        logits, ids = model(**inputs).logits, generate(model, inputs)
        with pruning.load("cls_attention", 576)(model):
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(generate(model, inputs), ids)
        assert torch.equal(VisionTower(model).full(pixels).hidden, plain_features(model, pixels)[:, 1:])


def test_every_method_is_the_identity_at_the_full_budget(llava, scenes):
    """A record at the full budget holds the unpruned run's answers because of this (eval/outcome.py)."""
    pixels, questions = llava.pixels([s[0] for s in scenes]), [s[1] for s in scenes]
    full = llava.prune(pixels, pruning.load("vanilla", 576))
    for name in pruning.names():
        pruner = pruning.load(name, 576)
        if pruner.keeps(576) == 576 and not (pruner.inside_language_model or pruner.resizes_image):
            assert torch.equal(llava.prune(pixels, pruner, questions).hidden, full.hidden), name


@pytest.mark.parametrize("threshold", [0.0, 0.3, 9.0])
def test_questions_with_equal_tokens_share_a_prefix(llava, scenes, monkeypatch, threshold):
    """Where no shift is severe the questions of an image get the same tokens; where all are, each its own."""
    images, questions = [s[0] for s in scenes], [s[1] for s in scenes]
    pruner, prefixes, pack = pruning.load("acgr_tatcs", 64, threshold=threshold), [], llava._pack
    monkeypatch.setattr(llava, "_pack", lambda visual, *more: (prefixes.append(len(visual)), pack(visual, *more))[1])
    together = llava.answer(images, questions, pruner)
    alone = [[llava.answer([image], [[q]], pruner)[0][0] for q in asked] for image, asked in zip(images, questions)]
    fewest, most = len(images), sum(map(len, questions))
    assert {0.0: most, 9.0: fewest}.get(threshold, prefixes[0]) == prefixes[0] and fewest <= prefixes[0] <= most
    for a, b in zip(chain.from_iterable(together), chain.from_iterable(alone)):
        assert a.text == b.text and a.index == b.index and a.shifts == pytest.approx(b.shifts, rel=1e-3, abs=1e-5)


def test_prefixes_are_shared_where_that_is_less_to_compute():
    """Two images with two questions each: three tokens of prefix and a long one, questions of 1 to 4 tokens."""
    rows = Rows([0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 2, 3])
    assert rows.prefixes([3] * 4, [4, 4, 4, 4]) == [0, 1, 2, 3]  # 4 x (3 + 4) against 3 x (3 + 8)
    assert rows.prefixes([9] * 4, [1, 1, 1, 1]) == [0, 0, 2, 3]  # 4 x (9 + 1) against 3 x (9 + 2)
    assert rows.distinct == [0, 2, 3]


def test_an_image_that_the_cache_knows_is_not_read_again(llava, scenes):
    images, questions = [s[0] for s in scenes], [s[1] for s in scenes]
    first, second = pruning.load("scope", 16), pruning.load("acgr_tatcs", 576)
    llava.cache.clear()
    prepared = [llava.prepare(str(i), image) for i, image in enumerate(images)]
    assert llava.known("0", unread, first) is None  # its fingerprint alone is no state of the tower
    llava.answer(prepared, questions, first)
    for pruner in (first, second):
        known = [llava.known(str(i), unread, pruner) for i in range(len(images))]
        for ours, plain in zip(llava.answer(known, questions, pruner), llava.answer(images, questions, pruner)):
            for a, b in zip(ours, plain):
                assert torch.equal(a.first_logits, b.first_logits) and a.index == b.index and a.shifts == b.shifts
    assert llava.known("0", unread, pruning.load("downsample", 16)) is None  # cuts the pixels itself
    assert llava.known("other", unread, first) is None
    llava.cache.clear()
    assert llava.known("0", unread, first) is None


def unread():
    raise AssertionError("the image was read")


def test_leaving_the_context_restores_the_model_also_after_an_error(llava, scenes):
    model, inputs = llava.model, batch(llava, scenes)
    before, names = generate(model, inputs), dict(vars(model))
    with pruning.load("cls_attention", 16)(model):
        pruned = generate(model, inputs)
    with pytest.raises(RuntimeError, match="stop"), pruning.load("uniform", 16)(model):
        raise RuntimeError("stop")
    assert vars(model) == names and "get_image_features" not in vars(model.model)
    assert torch.equal(generate(model, inputs), before)
    assert pruned.shape[0] == before.shape[0] and torch.equal(
        pruned[:, : inputs["input_ids"].shape[1]], inputs["input_ids"]
    )


def test_the_context_gives_the_answers_of_the_wrapper(llava, scenes):
    for name in ("cls_attention", "acgr_tatcs"):
        pruner = pruning.load(name, 16)
        answers = llava.answer([s[0] for s in scenes[:2]], [s[1][:1] for s in scenes[:2]], pruner)
        inputs = batch(llava, scenes)
        with attach(llava.model, pruner, llava.tokenizer) as model:
            new = generate(model, inputs)[:, inputs["input_ids"].shape[1] :]
        texts = llava.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert texts == [asked[0].text for asked in answers]


def test_wrapper_answers_are_those_of_plain_generate(llava, scenes):
    answers = llava.answer([s[0] for s in scenes], [s[1] for s in scenes], pruning.load("vanilla", 576))
    for (image, questions, _), own in zip(scenes, answers):
        for question, answer in zip(questions, own):
            inputs = llava.processor(images=image, text=PROMPT.format(question=question), return_tensors="pt")
            ids = generate(llava.model, inputs)[0, inputs["input_ids"].shape[1] :]
            assert answer.text == llava.tokenizer.decode(ids, skip_special_tokens=True)
            assert answer.visual_tokens == 576


def test_one_context_serves_many_blocks(llava, scenes):
    inputs, context = batch(llava, scenes), pruning.load("cls_attention", 16)(llava.model)
    names, answers = dict(vars(llava.model)), []
    for _ in range(2):
        with context as model:
            answers.append(generate(model, inputs))
            with pytest.raises(pruning.InputError, match="already inside"), context:
                pass
        assert vars(llava.model) == names
    assert torch.equal(*answers)


def test_nesting_and_wrong_models_are_refused(llava):
    pruner = pruning.load("uniform", 16)
    with pruner(llava.model), pytest.raises(pruning.InputError, match="already inside"), pruner(llava.model):
        pass
    with (
        pytest.raises(pruning.InputError, match="expected a LlavaForConditionalGeneration, got Linear"),
        pruner(torch.nn.Linear(1, 1)),
    ):
        pass
    with (
        pytest.raises(pruning.InputError, match="between 1 and 576, got 577"),
        pruning.load("uniform", 577)(llava.model),
    ):
        pass


def test_cls_row_is_the_row_of_eager_attention(llava, scenes):
    pixels = llava.pixels([scenes[0][0]])
    clip = llava.model.model.vision_tower
    clip.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = llava.model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        clip.set_attn_implementation("sdpa")
    for layer in range(llava.tower.depth):
        block = llava.tower.blocks[layer]
        with torch.no_grad():
            row = cls_row(block.self_attn, block.layer_norm1(out.hidden_states[layer]))
        torch.testing.assert_close(row, out.attentions[layer][:, :, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["acgr_tatcs", "cls_attention", "random", "vanilla"])
def test_answers_do_not_depend_on_batch_or_order(llava, scenes, name):
    pruner = pruning.load(name, 576 if name == "vanilla" else 16)
    images, questions = [s[0] for s in scenes], [s[1] for s in scenes]
    together = llava.answer(images, questions, pruner)
    backwards = llava.answer(images[::-1], questions[::-1], pruner)[::-1]
    alone = [[llava.answer([image], [[q]], pruner)[0][0] for q in asked] for image, asked in zip(images, questions)]
    for a, b, c in zip(*(chain.from_iterable(x) for x in (together, backwards, alone))):
        assert a.text == b.text == c.text and a.index == b.index == c.index
        torch.testing.assert_close(a.first_logits, c.first_logits, atol=2e-4, rtol=1e-4)
        assert a.shifts == pytest.approx(c.shifts, rel=1e-3, abs=1e-5)


def test_score_is_the_models_own_loss(llava, scenes):
    (image, questions, _), continuation = scenes[0], "yes"
    nll, greedy = llava.score([image], [questions[:1]], [[continuation]], pruning.load("vanilla", 576))[0][0]
    inputs = llava.processor(images=image, text=PROMPT.format(question=questions[0]) + " yes", return_tensors="pt")
    with torch.no_grad():
        logits = llava.model(**inputs).logits[0]
    target = inputs["input_ids"][0, -1]
    assert nll == pytest.approx(float(-logits[-2].log_softmax(-1)[target]), abs=1e-4)
    assert greedy == bool(logits[-2].argmax() == target)


def test_patches_cut_by_hand_embed_like_the_image(llava, scenes):
    pixels = llava.pixels([scenes[0][0]])
    rows, columns = llava.tower.grid
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    with torch.no_grad():
        own = llava.tower.embed_patches(patches, torch.stack([y.flatten(), x.flatten()], -1))
        torch.testing.assert_close(own, llava.tower.embed(pixels), atol=1e-4, rtol=1e-4)


def blocks_run(tower, work):
    """What `work` returns, and the blocks that it ran, in order."""
    ran = []
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(tower.blocks)]
    try:
        with torch.no_grad():
            return work(), ran
    finally:
        for hook in hooks:
            hook.remove()


def test_cache_is_bounded_and_used(llava, scenes):
    pixels = llava.pixels([s[0] for s in scenes])
    one = 577 * llava.tower.full(pixels[:1]).hidden.shape[2] * 4
    tower = VisionTower(llava.model, StateCache(max_bytes=5 * one))
    first, ran = blocks_run(tower, lambda: tower.full(pixels).hidden)  # 8 states for room of 5
    assert tower.cache.bytes <= 5 * one and len(tower.cache) == 5 and len(ran) == tower.depth
    again, ran = blocks_run(tower, lambda: tower.full(pixels).hidden)
    assert torch.equal(again, first) and ran == [tower.depth - 1]  # one image has both states, the others the first
    for _ in range(2):  # what no pass has read for a turn makes room
        tower.cache.turn()
        tower.full(pixels[3:].flip(-1))
    assert blocks_run(tower, lambda: tower.full(pixels[3:].flip(-1)))[1] == [] and tower.cache.bytes <= 5 * one


@pytest.mark.parametrize("name", ["acgr_tatcs", "flowcut", "tome", "cls_attention"])
def test_no_block_runs_twice_on_an_image(llava, scenes, name):
    pixels, pruner = llava.pixels([s[0] for s in scenes[:2]]), pruning.load(name, 16)
    cold, warm = VisionTower(llava.model), VisionTower(llava.model, StateCache())
    warm.remembered = warm.places(pruner)
    warm.full(pixels)
    plain = cold.survivors(pixels, pruner)
    tokens, ran = blocks_run(warm, lambda: warm.survivors(pixels, pruner))
    assert torch.equal(tokens.hidden, plain.hidden) and torch.equal(tokens.index, plain.index)
    first = min(warm.schedule(pruner), default=warm.depth)
    assert all(layer > first for layer in ran)


def test_no_visual_token_at_all(llava, scenes):
    image, questions, _ = scenes[0]
    answer = llava.answer([image], [questions[:1]], pruning.load("blank", 1))[0][0]
    assert answer.visual_tokens == 0 and answer.index == [] and answer.text
