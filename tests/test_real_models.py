"""LLaVA and LLaVA-NeXT of the real classes with small random weights: what a user of the 7B models calls."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import pruning
from eval.point import check_reach
from models.attach import attach
from models.load import load
from models.versions import cache_in
from tests import tiny
from tests.conftest import PROMPT
from tests.tiny import QUESTIONS, asked, inputs, new_tokens

METHODS = ["acgr_tatcs", "cls_attention", "trim", "tome"]


# --- LLaVA-NeXT's packing ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpruned_packing_is_hugging_faces_bit_for_bit(cut, dtype):
    images, texts = asked()
    given, other = inputs(cut, images, texts), tiny.converted(cut, dtype)
    with torch.no_grad():
        theirs = other.model.model.get_image_features(given["pixel_values"].to(dtype), given["image_sizes"])
        ours = other.project(other.prune(other.pixels(images), pruning.load("vanilla", 80)))
    assert all(torch.equal(a, b) for a, b in zip(ours, getattr(theirs, "pooler_output", theirs), strict=True))


def test_full_budget_answers_like_plain_generate(both):
    llava, _ = both
    images, texts = asked()
    answers = llava.answer(images, [[q] for q in QUESTIONS], pruning.load("vanilla", llava.visual_tokens), 5)
    given = inputs(llava, images, texts)
    assert [a[0].text for a in answers] == llava.tokenizer.batch_decode(new_tokens(llava.model, given), True)
    assert [a[0].visual_tokens for a in answers] == (given["input_ids"] == 4).sum(1).tolist()


def test_padding_is_never_kept_and_takes_no_budget(cut):
    images, _ = asked()
    pixels = cut.pixels(images)
    for name in ("random", "acgr", "tome"):
        for kept, size in zip(cut.prune(pixels, pruning.load(name, 40)), pixels.sizes):
            frame = cut.crops.frame(size)
            shown = frame.patches
            assert torch.isin(kept.place, shown).all() and len(set(kept.place.tolist())) == len(kept.place)
            in_crop = [int((shown // 16 == crop).sum()) for crop in range(cut.crops.number(size))]
            assert torch.bincount(kept.crop, minlength=len(in_crop)).tolist() == [min(8, n) for n in in_crop]


def test_kept_tokens_are_packed_in_the_layouts_order(cut):
    size = tiny.SIZES[1][::-1]  # 70 x 120: padded left and right
    pixels = cut.pixels(tiny.pictures(2)[1:])
    for newline in ("keep", "drop"):
        crops = type(cut.crops)(cut.model, cut.tower, newline)
        pruner = pruning.load("uniform", 40)
        kept = crops.prune(pixels.crops, pixels.sizes, pruner)[0]
        layout = crops.frame(size).layout
        wanted = [p for p in layout.tolist() if p in kept.place.tolist() or (p < 0 and newline == "keep")]
        assert crops.index(kept).tolist() == wanted
        assert len(crops.project([kept])[0]) == len(wanted) == crops.count(size, pruner)
    unpadded = type(cut.crops)(cut.model, cut.tower, unpad=False)
    assert unpadded.count(size, pruning.load("uniform", 40)) == 40 and len(unpadded.frame(size).patches) == 80


@pytest.mark.parametrize(("newline", "unpad"), [("drop", True), ("keep", True), ("drop", False), ("keep", False)])
def test_reported_tokens_are_those_that_reach_the_language_model(folder, cut, newline, unpad):
    llava = load(str(folder / "next"), PROMPT, dtype="float32", device="cpu", newline=newline, unpad=unpad)
    for name, budget in (("acgr", 20), ("vanilla", 80)):
        pruner, (images, texts) = pruning.load(name, budget), asked()
        answers = llava.answer(images, [[q] for q in QUESTIONS], pruner, 5)
        with attach(llava.model, pruner, newline=newline, unpad=unpad) as model, torch.no_grad():
            for image, text, (answer,) in zip(images, texts, answers):
                given = inputs(llava, [image], [text])
                words = int((given["input_ids"] != 4).sum())
                assert model(**given).logits.shape[1] - words == answer.visual_tokens == len(answer.index)
                assert llava.tokenizer.decode(new_tokens(model, given)[0], True) == answer.text


def test_budget_must_divide_over_the_crops(cut):
    line = "budget is the total over 5 crops and must be divisible by 5, got 16; the nearest are 15 and 20"
    with pytest.raises(pruning.InputError, match=line):
        cut.answer(tiny.pictures(1), [["?"]], pruning.load("uniform", 16))
    with pytest.raises(pruning.InputError, match="between 1 and 80, got 81"), pruning.load("uniform", 81)(cut.model):
        pass
    for pruner, said in ((pruning.load("uniform", 16), line), (pruning.load("fastv", 80), "for LLaVA-1.5 only")):
        with pytest.raises(pruning.InputError, match=said):  # a loaded model whose configuration was not at hand
            check_reach(pruner, cut)
    with pytest.raises(pruning.InputError, match="newline must be one of keep, drop"):
        type(cut.crops)(cut.model, cut.tower, "maybe")


def test_selection_is_timed_apart_from_the_tower(cut):
    cut.seconds.clear()
    cut.prune(cut.pixels(tiny.pictures(2)), pruning.load("tatcs", 20, trigger="always"), [["a?"], ["b?"]])
    assert set(cut.seconds) == {"tower", "selection"} and min(cut.seconds.values()) > 0


# --- batches ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_batches_of_sizes_and_questions_answer_like_singles(both, name):
    llava, budget = both
    pruner, images = pruning.load(name, budget), tiny.pictures()
    questions = [QUESTIONS[: 1 + i % 3] for i in range(len(images))]
    together = llava.answer(images, questions, pruner, 5)
    for image, own, answers in zip(images, questions, together):
        for question, answer in zip(own, answers):
            alone = llava.answer([image], [[question]], pruner, 5)[0][0]
            assert (answer.text, answer.index) == (alone.text, alone.index)
            assert answer.shifts == pytest.approx(alone.shifts, rel=1e-3, abs=1e-5)
            torch.testing.assert_close(answer.first_logits, alone.first_logits, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [*METHODS, "blank"])
def test_generate_in_the_context_answers_like_the_wrapper(both, name):
    llava, budget = both
    pruner, (images, texts) = pruning.load(name, budget), asked()
    answers = llava.answer(images, [[q] for q in QUESTIONS], pruner, 5)
    with pruner(llava.model) as model:
        rows = new_tokens(model, inputs(llava, images, texts))
    assert llava.tokenizer.batch_decode(rows, True) == [a[0].text for a in answers]


def test_text_only_and_several_images_in_one_batch(both):
    llava, budget = both
    images, pruner = tiny.pictures(3), pruning.load("acgr_tatcs", budget)
    texts = [PROMPT.format(question=QUESTIONS[0]), "USER: what is 7? ASSISTANT:"]
    texts.append("USER: <image>\n<image>\nis there a red circle? ASSISTANT:")
    each = [(images[:1], texts[0]), ([], texts[1]), (images[1:], texts[2])]
    with attach(llava.model, pruner, llava.tokenizer) as model:
        together = new_tokens(model, inputs(llava, images, texts))
        alone = [new_tokens(model, inputs(llava, own, [text]))[0] for own, text in each]
    assert together == alone


def test_each_image_of_a_prompt_gets_the_budget(plain):
    given = inputs(plain, tiny.pictures(2), ["USER: <image>\n<image>\nis there a red circle? ASSISTANT:"])
    with pruning.load("uniform", 4)(plain.model) as model, torch.no_grad():
        length = model(**given).logits.shape[1]
    assert length == given["input_ids"].shape[1] - 2 * (16 - 4)


# --- the rest of the engineer's path ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cls_attention", "acgr_tatcs"])
def test_beam_search_in_a_batch_is_that_of_singles(both, name):
    llava, budget = both
    images, texts = asked()
    with pruning.load(name, budget)(llava.model) as model:
        together = new_tokens(model, inputs(llava, images, texts), num_beams=3)
        alone = [new_tokens(model, inputs(llava, [i], [t]), num_beams=3)[0] for i, t in zip(images, texts)]
        with pytest.raises(pruning.InputError, match="run them one by one"):
            new_tokens(model, inputs(llava, images[:2], ["USER: <image><image> ? ASSISTANT:"]), num_beams=2)
    assert [row[: len(own)] for row, own in zip(together, alone)] == alone


def test_streaming_pipeline_and_chat(both, capsys):
    from transformers import TextStreamer, pipeline

    llava, budget = both
    image, pruner = tiny.pictures(1)[0], pruning.load("cls_attention", budget)
    text = llava.answer([image], [QUESTIONS[:1]], pruner, 5)[0][0].text
    given = inputs(llava, [image], [PROMPT.format(question=QUESTIONS[0])])
    with pruner(llava.model) as model:
        streamer = TextStreamer(llava.tokenizer, skip_prompt=True, skip_special_tokens=True)
        model.generate(**given, max_new_tokens=5, do_sample=False, streamer=streamer)
        assert capsys.readouterr().out.strip() == text.strip()
        pipe = pipeline("image-text-to-text", model=model, processor=llava.processor)
        chat = {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}],
        }
        said = pipe(text=[chat], max_new_tokens=5, return_full_text=False, generate_kwargs={"do_sample": False})
    rendered = llava.processor.apply_chat_template([chat], add_generation_prompt=True)
    with pruner(llava.model) as model:
        row = new_tokens(model, inputs(llava, [image], [rendered]))[0]
    assert said[0]["generated_text"].strip() == llava.tokenizer.decode(row, True).strip()


def test_lengths_labels_and_caches(plain):
    given = inputs(plain, *asked())
    with pruning.load("uniform", 4)(plain.model) as model, torch.no_grad():
        longest = given["input_ids"].shape[1] + 3
        assert model.generate(**given, max_length=longest, do_sample=False).shape[1] <= longest
        out = model.generate(**given, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
        assert len(out.scores) == 3 and cache_in(out).get_seq_length() == longest - 12 - 1
        labels = given["input_ids"].masked_fill(given["input_ids"] == 4, -100)
        assert torch.isfinite(model(**given, labels=labels).loss)


def test_bfloat16_runs_and_full_budget_is_the_plain_model(both):
    llava, budget = both
    given, plain = inputs(llava, *asked()), tiny.converted(llava, torch.bfloat16).model
    before = new_tokens(plain, given)
    with pruning.load("cls_attention", llava.visual_tokens)(plain) as model:
        assert new_tokens(model, given) == before
    for name in METHODS:
        with pruning.load(name, budget)(plain) as model:
            assert len(new_tokens(model, given)) == len(QUESTIONS)
    assert new_tokens(plain, given) == before


def test_what_cannot_work_says_so(plain, cut):
    images, texts = asked()
    given = inputs(plain, images, texts)
    lost, more = given["input_ids"].clone(), given["input_ids"].clone()
    lost[4][lost[4] == 4] = 5
    more[4, -1] = 4
    refused = {
        "give generate input_ids": {"inputs_embeds": plain.embed(given["input_ids"]), "input_ids": None},
        "leave position_ids out": {"position_ids": given["attention_mask"]},
        "5 images, but the prompts hold placeholders for 4": {"input_ids": lost},
        "prompt 4 holds 1 image placeholders, expected none more": {"input_ids": more},
    }
    with pruning.load("uniform", 4)(plain.model) as model:
        for line, changed in refused.items():
            with pytest.raises(pruning.InputError, match=line):
                model.generate(**{**given, **changed}, max_new_tokens=1)
    with (
        pytest.raises(pruning.InputError, match=r"FastV prunes .* for LLaVA-1.5"),
        pruning.load("fastv", 80)(cut.model),
    ):
        pass


def test_hooks_of_others_on_forward_come_back(plain):
    given, calls = inputs(plain, *asked()), []
    inner = plain.model.forward
    plain.model.forward = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]  # as accelerate's device map does
    mine = plain.model.forward
    try:
        with pruning.load("uniform", 4)(plain.model) as model:
            model(**given)
        assert calls == [1] and plain.model.forward is mine
    finally:
        del plain.model.forward


def test_images_are_padded_or_cropped_as_the_protocol_says(folder, plain):
    from models.load import square_processor

    wide = Image.new("RGB", (112, 56), (255, 0, 0))
    path = str(folder / "llava")
    padded = load(path, PROMPT, dtype="float32", device="cpu", image_protocol="pad").pixels([wide])[0]
    assert torch.allclose(padded[:, :10], torch.zeros(3, 10, tiny.SIDE), atol=0.02)  # the mean colour
    assert padded[0, 28].min() > 1.5
    cropped = load(path, PROMPT, dtype="float32", device="cpu", image_protocol="crop").pixels([wide])
    assert torch.equal(cropped, plain.pixels([wide]))
    with pytest.raises(pruning.InputError, match="image_protocol must be one of pad, crop, got 'stretch'"):
        square_processor(plain.processor.image_processor, "stretch")
    with pytest.raises(pruning.InputError, match="cuts crops of its own"):
        load(str(folder / "next"), PROMPT, image_protocol="pad")
