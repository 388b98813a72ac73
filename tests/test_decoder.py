"""Pruning inside the language model: budgets, cache lengths, independence of the batch, one result on every path."""

from __future__ import annotations

from copy import copy
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

import pruning
from models.decoder import DecoderDriver, attention_rows
from models.versions import cache_in
from pruning.sparsevlm import cluster_means, merge_counts, raters
from tests.conftest import PROMPT
from tests.tiny import converted

CASES = [("fastv", 300, {}), ("fastv", 150, {}), ("pyramiddrop", 200, {}), ("sparsevlm", 200, {})]
CASES += [("sparsevlm", 200, {"version": "plus"})]


def inputs(llava, scenes, which):
    """Processor output for question q of image i, for the pairs (i, q) of `which`."""
    images = [scenes[i][0] for i, _ in which]
    texts = [PROMPT.format(question=scenes[i][1][q]) for i, q in which]
    return llava.processor(images=images, text=texts, return_tensors="pt", padding=True)


def generate(model, batch, **options):
    options = {"max_new_tokens": 5, "do_sample": False, **options}
    return model.generate(**batch, return_dict_in_generate=True, output_scores=True, **options)


def saying(told, start):
    """A logits processor that has row n of `generate` say `told[n]`, (R, steps) ids, after `start` ids of prompt."""
    return lambda ids, scores: torch.full_like(scores, -torch.inf).scatter(1, told[:, ids.shape[1] - start, None], 0)


# --- budgets ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "budget", "plan"),
    [
        ("fastv", 192, {2: 166}),
        ("fastv", 128, {2: 98}),
        ("fastv", 64, {2: 30}),
        ("fastv", 32, {1: 14}),
        ("pyramiddrop", 192, {4: 304, 8: 160, 16: 84}),
        ("pyramiddrop", 128, {2: 242, 8: 102, 16: 42}),
        ("pyramiddrop", 270, {8: 288, 16: 144, 24: 72}),
    ],
)
def test_plans_on_32_layers_are_the_published_ones(name: str, budget: int, plan: dict[int, int]) -> None:
    assert pruning.load(name, budget).plan(32, 576) == plan


@pytest.mark.parametrize(("version", "kept"), [("v1", (312, 117, 39)), ("plus", (238, 108, 60))])
def test_the_authors_counting_gives_the_authors_lists(version: str, kept: tuple[int, ...]) -> None:
    pruner = pruning.load("sparsevlm", 128, version=version, counting="after_prune")
    counts = pruner.counts(pruner.plan(32, 576), 32, 576)
    assert (counts[3], counts[7], counts[16]) == kept and counts[:3] == [576] * 3


@pytest.mark.parametrize("depth", [5, 32, 40])
@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_every_budget_above_the_floor_is_met(name: str, budget: int, options: dict, depth: int) -> None:
    for value in range(130, 576, 37):
        pruner = pruning.load(name, value, **options)
        plan = pruner.plan(depth, 576)
        assert abs(sum(pruner.counts(plan, depth, 576)) / depth - value) <= 1
        assert min(plan) >= 1 and max(plan) < depth
    assert pruning.load(name, 576, **options).plan(depth, 576) == {}


def test_below_the_floor_one_line_says_what_can_be_reached() -> None:
    with pytest.raises(pruning.InputError, match=r"over 5 decoder layers, must be between 116 and 576, got 16"):
        pruning.load("fastv", 16).plan(5, 576)
    with pytest.raises(pruning.InputError, match=r"over 32 decoder layers, must be between 19 and 576, got 18"):
        pruning.load("pyramiddrop", 18).plan(32, 576)
    with pytest.raises(pruning.InputError, match=r"between 1 and 576, got 577"):
        pruning.load("fastv", 577).plan(32, 576)
    with pytest.raises(pruning.InputError, match=r"rising integers from 1 on, got 0"):
        pruning.load("fastv", 300, layer=0).plan(32, 576)


# --- mathematics --------------------------------------------------------------------------------------------
def test_padding_text_never_rates() -> None:
    g = torch.Generator().manual_seed(0)
    visual, text = torch.randn(2, 20, 8, generator=g), torch.randn(2, 6, 8, generator=g)
    real = torch.tensor([[False, False, True, True, True, True], [False] * 5 + [True]])
    chosen = raters(visual, text, real)
    assert not (chosen & ~real).any() and chosen.any(1).all()
    assert torch.equal(chosen[:1, 2:], raters(visual[:1], text[:1, 2:], real[:1, 2:]))


def test_equal_tokens_merge_into_themselves() -> None:
    x = torch.randn(1, 1, 8).expand(2, 30, 8)
    torch.testing.assert_close(cluster_means(x, 3)[:, :1], x[:, :1])
    assert cluster_means(x, 3).isfinite().all() and merge_counts(510) == (154, 16)


# --- on the model -------------------------------------------------------------------------------------------
def test_rows_are_those_of_eager_attention(llava, scenes):
    language, batch = llava.language, inputs(llava, scenes, [(0, 0), (1, 1)])
    x, real = llava.embed(batch["input_ids"]), batch["attention_mask"].bool()
    position = torch.arange(x.shape[1])[None]
    cos, sin = (table.expand(2, -1, -1) for table in language.rotary_emb(x, position))
    language.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = language(inputs_embeds=x, attention_mask=real.long(), position_ids=position, output_attentions=True)
            rows = attention_rows(language.layers[0], x, cos, sin, real, 3)
    finally:
        language.set_attn_implementation("sdpa")
    torch.testing.assert_close(rows, out.attentions[0][:, :, -3:], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_cache_holds_what_the_plan_says(llava, scenes, name, budget, options, dtype):
    batch, pruner = inputs(llava, scenes, [(0, 0)]), pruning.load(name, budget, **options)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with pruner(converted(llava, dtype).model) as model, torch.no_grad():
        cache = cache_in(model(**batch, use_cache=True))
    text = batch["input_ids"].shape[1] - 576
    counts = pruner.counts(pruner.plan(5, 576), 5, 576)
    assert [cache.get_seq_length(layer) - text for layer in range(5)] == counts
    assert counts[0] == 576 > counts[-1]


@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_batches_generate_and_answer_agree(llava, scenes, name, budget, options):
    pruner, pairs = pruning.load(name, budget, **options), [(0, 0), (1, 1), (1, 2)]
    asked = [[scenes[0][1][0]], scenes[1][1][1:3]]
    answers = list(chain.from_iterable(llava.answer([scenes[0][0], scenes[1][0]], asked, pruner, max_new_tokens=5)))
    with pruner(llava.model):
        together = generate(llava.model, inputs(llava, scenes, pairs))
    for row, (pair, answer) in enumerate(zip(pairs, answers)):
        batch = inputs(llava, scenes, [pair])
        with pruner(llava.model):
            alone = generate(llava.model, batch)
        torch.testing.assert_close(together.scores[0][row], alone.scores[0][0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(answer.first_logits, alone.scores[0][0], atol=1e-3, rtol=1e-3)
        text = llava.tokenizer.decode(alone.sequences[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.text == text and answer.shifts == {}
        counts = pruner.counts(pruner.plan(5, 576), 5, 576)
        assert answer.visual_tokens == sum(counts) / 5 and len(answer.index) == counts[-1]


@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_score_says_what_answer_does(llava, scenes, name, budget, options):
    pruner, (image, questions, _) = pruning.load(name, budget, **options), scenes[0]
    answers = llava.answer([image], [questions[:2]], pruner, max_new_tokens=4)[0]
    said = [answer.text for answer in answers]
    together = llava.score([image], [questions[:2]], [said], pruner)[0]
    for question, text, (loss, greedy) in zip(questions, said, together):
        assert greedy
        assert llava.score([image], [[question]], [[text]], pruner)[0][0][0] == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_beams_and_samples_of_a_batch_are_those_of_singles(llava, scenes, name, budget, options):
    pruner, model, pairs = pruning.load(name, budget, **options), llava.model, [(0, 0), (1, 1)]
    batch = inputs(llava, scenes, pairs)
    with pruner(model):
        together = generate(model, batch, num_beams=3, num_return_sequences=2)
        for row, pair in enumerate(pairs):
            alone = generate(model, inputs(llava, scenes, [pair]), num_beams=3, num_return_sequences=2)
            mine = slice(2 * row, 2 * row + 2)
            texts = [llava.tokenizer.batch_decode(rows, True) for rows in (together.sequences[mine], alone.sequences)]
            assert texts[0] == texts[1]
            torch.testing.assert_close(together.sequences_scores[mine], alone.sequences_scores, atol=1e-3, rtol=1e-3)
        options = {"do_sample": True, "temperature": 50.0, "num_return_sequences": 3, "output_logits": True}
        torch.manual_seed(0)
        sampled = generate(model, batch, **options)
        said = sampled.sequences[:, batch["input_ids"].shape[1] :]
        assert len(said.unique(dim=0)) > len(pairs)
        for row, pair in enumerate(pairs):  # the same samples again, without the other prompt
            single, mine = inputs(llava, scenes, [pair]), slice(3 * row, 3 * row + 3)
            forced = saying(said[mine], single["input_ids"].shape[1])
            alone = generate(model, single, logits_processor=[forced], **options)
            assert (said[mine, : len(alone.logits)] == alone.sequences[:, single["input_ids"].shape[1] :]).all()
            for a, b in zip(sampled.logits, alone.logits):
                torch.testing.assert_close(a[mine], b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_text_only_rows_and_two_images(llava, scenes, name, budget, options):
    pruner, model = pruning.load(name, budget, **options), llava.model
    texts = ["USER: is it red? ASSISTANT:", "USER: <image> <image> is it red? ASSISTANT:"]
    mixed = llava.processor(images=[scenes[0][0], scenes[1][0]], text=texts, return_tensors="pt", padding=True)
    plain = llava.tokenizer(texts[:1], return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=plain["input_ids"]).logits[0, -1]
        with pruner(model):
            out = model(**mixed, use_cache=True)
    torch.testing.assert_close(out.logits[0, -1], expected, atol=1e-3, rtol=1e-3)
    text = int(mixed["attention_mask"][1].sum()) - 2 * 576
    counts = pruner.counts(pruner.plan(5, 576), 5, 576)  # each image has the budget
    assert [cache_in(out).get_seq_length(layer) for layer in range(5)] == [text + 2 * n for n in counts]


def test_a_failed_call_leaves_nothing_behind(llava, scenes):
    model, text = llava.model, llava.tokenizer("USER: is it red? ASSISTANT:", return_tensors="pt")
    batch = inputs(llava, scenes, [(0, 0)])
    with torch.no_grad(), pruning.load("fastv", 300)(model):
        expected = model(**text).logits
        image = generate(model, batch)
        with pytest.raises((ValueError, RuntimeError)):  # transformers counts features; nothing of it may stay armed
            model(**{**batch, "pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)})
        assert torch.equal(model(**text).logits, expected)
        assert torch.equal(generate(model, batch).sequences, image.sequences)


def test_an_answer_may_hold_the_image_token(llava, scenes):
    model, batch = llava.model, inputs(llava, scenes, [(0, 0), (1, 1)])
    forced = lambda step, ids: [4] if len(ids) == batch["input_ids"].shape[1] else list(range(5, 84))  # noqa: E731
    with pruning.load("fastv", 300)(model):
        out = generate(model, batch, prefix_allowed_tokens_fn=forced)
    assert (out.sequences[:, batch["input_ids"].shape[1]] == 4).all()


def test_leaving_restores_and_the_full_budget_is_the_identity(llava, scenes):
    model, batch = llava.model, inputs(llava, scenes, [(0, 0), (1, 1)])
    before = generate(model, batch)
    with pruning.load("pyramiddrop", 200)(model):
        generate(model, batch)
    assert not any(m._forward_pre_hooks for m in model.modules())
    for pruner in (None, pruning.load("sparsevlm", 576)):
        if pruner:
            with pruner(model):
                after = generate(model, batch)
        else:
            after = generate(model, batch)
        assert torch.equal(after.scores[0], before.scores[0]) and torch.equal(after.sequences, before.sequences)


def test_what_cannot_work_says_so(llava, scenes):
    model, batch = llava.model, inputs(llava, scenes, [(0, 0), (1, 1)])
    with pruning.load("fastv", 300)(model):
        with pytest.raises(pruning.InputError, match="padded on the left"):
            model(**{**batch, "attention_mask": 1 - torch.eye(2, batch["input_ids"].shape[1]).flip(1).long()})
        with pytest.raises(pruning.InputError, match="needs input_ids"):
            model(inputs_embeds=llava.embed(batch["input_ids"]))
        with pytest.raises(pruning.InputError, match="leave prompt_lookup_num_tokens out"):
            model.generate(**batch, prompt_lookup_num_tokens=2)
        with pytest.raises(pruning.InputError, match="dynamic key-value cache"):
            model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(pruning.InputError, match="knows llama, mistral, qwen2, got gemma"):
        odd = SimpleNamespace(layers=torch.nn.ModuleList(llava.language.layers), config=copy(llava.language.config))
        odd.config.model_type = "gemma"
        DecoderDriver(odd, pruning.load("fastv", 300), 576)
    with pytest.raises(pruning.InputError, match="between 116 and 576, got 64"), pruning.load("fastv", 64)(model):
        pass
