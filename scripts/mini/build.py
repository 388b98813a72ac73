"""Writes a checkpoint as a plain LlavaForConditionalGeneration folder, and checks that it answers as the training code does."""

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from .join import Joined, make_batch
from .packing import pack
from .vocabulary import CHAT_TEMPLATE, ID, make_tokenizer
from .world import GRID, PATCH, PX, World

ANSWER_TOKENS = 6  # the longest answer, three digits, and its end


def to_llava(model: Joined) -> LlavaForConditionalGeneration:
    """The shipped part of the model: tower, projector, language model and head."""
    vision = getattr(model.tower.clip.config, "vision_config", model.tower.clip.config)
    config = LlavaConfig(
        vision_config=vision, text_config=model.language.llama.config, image_token_id=ID["<image>"], projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=GRID * GRID, tie_word_embeddings=False)
    special = {"bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"], "pad_token_id": ID["<pad>"]}
    for k, v in special.items():
        setattr(config, k, v)
    net = LlavaForConditionalGeneration(config)
    projector = net.model.multi_modal_projector
    for ours, theirs in ((model.tower.clip, net.model.vision_tower), (model.language.llama, net.model.language_model),
                         (model.language.head, net.lm_head), (model.linear_1, projector.linear_1), (model.linear_2, projector.linear_2)):
        theirs.load_state_dict(ours.state_dict())
    net.generation_config.update(**special, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return net.eval()


def make_processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX})
    return LlavaProcessor(images, make_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, image_token="<image>", chat_template=CHAT_TEMPLATE)


def write_folder(model: Joined, folder: Path) -> None:
    """fp16 folder, written beside and swapped in."""
    tmp = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    to_llava(model).half().save_pretrained(tmp)
    make_processor().save_pretrained(tmp)
    folder.mkdir(parents=True, exist_ok=True)
    for f in sorted(tmp.iterdir()):
        f.chmod(0o644)
        f.replace(folder / f.name)
    tmp.rmdir()


@torch.no_grad()
def compare(model: Joined, folder: Path, scenes: int = 20, seed: int = 4242) -> dict[str, int]:
    """from_pretrained + chat template + generate against the training code's own greedy answers, on fresh scenes.

    The training code decodes freely here (each token after its own tokens, not after the right ones); teacher forcing would
    differ from generate wherever the first token of a long answer is wrong. Its weights are rounded to fp16 first, as shipped.
    """
    model = model.half().float().eval()
    net = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    world, count = World(seed), {"questions": 0, "right": 0, "same": 0}
    weights = dict.fromkeys(("exist", "color", "where", "position", "relation", "choice", "sign"), 1.0)
    for _ in range(scenes):
        batch = make_batch(world, 1, PX, (4, 9), weights, n_questions=5)
        visual = model.project(model.tower(batch["pixels"])[0])
        image = unnormalised(batch["pixels"][0])
        for question, answer, kind in batch["questions"][0]:
            mine = greedy(model, visual, question, kind)
            talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
            x = processor(images=image, text=prompt, return_tensors="pt")
            got = processor.decode(net.generate(**x)[0, x["input_ids"].shape[1]:], skip_special_tokens=True).strip()
            count["questions"] += 1
            count["right"] += got == answer
            count["same"] += got == mine
            if got != mine:
                print("differs:", repr(question), "generate", repr(got), "training code", repr(mine), "right", repr(answer))
    return count


def unnormalised(pixels: torch.Tensor) -> np.ndarray:
    """(3, H, W) of the processor back to the uint8 image (H, W, 3)."""
    p = make_processor().image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (p.image_mean, p.image_std))
    return ((pixels * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()


def greedy(model: Joined, visual: torch.Tensor, question: str, kind: str) -> str:
    """Free-running answer of the training code: its packing with the tokens said so far as the answer."""
    tokenizer, said = make_tokenizer(), []
    for _ in range(ANSWER_TOKENS):
        text = tokenizer.decode(said) if said else ""
        q = pack([[(question, text, kind)]], np.arange(GRID * GRID), np.zeros(1, bool))
        said.append(int(model.language.logits(visual, q)[-1].argmax()))
        if said[-1] == ID["</s>"]:
            break
    return tokenizer.decode(said, skip_special_tokens=True).strip()
