"""Small random-weight models of the real classes, saved and loaded through the same path as the 7B ones."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.guard import guard_torchvision
from models.load import load
from models.versions import pil
from scripts.benches._shapes import full_tower
from tests.conftest import PROMPT, ROOT

SIDE, PATCH = 56, 14  # 16 patches a crop
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
SIZES = [(96, 96), (120, 70), (40, 160), (33, 41), (90, 200)]  # (width, height)
QUESTIONS = ["what color is the sign?", "is there a red circle?", "how many squares?", "what is 7?", "is there a 5?"]


def parts() -> tuple[dict, dict]:
    """Vision and text configurations of 16 patches, 4 blocks (3 of them run), and a 2-layer Llama."""
    vision = {
        "model_type": "clip_vision_model",
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 84,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return vision, text


def save(folder: Path, next_: bool, language: str = "llama") -> Path:
    """Writes model and processor like a checkpoint of llava-hf; `language` is llama or mistral."""
    guard_torchvision()
    import transformers as t

    vision, text = parts()
    text["model_type"] = language
    shared = {"image_token_index": 4, "vision_feature_layer": -2, "pad_token_id": 0, "eos_token_id": 2}
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    tokenizer = t.AutoTokenizer.from_pretrained(ROOT / "models" / "mini")
    place = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    torch.manual_seed(0)
    if next_:
        config = t.LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=PINPOINTS, **shared)
        model = t.LlavaNextForConditionalGeneration(config)
        images = pil("llava_next", "LlavaNextImageProcessor")(image_grid_pinpoints=PINPOINTS, **sizes)
        processor = t.LlavaNextProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **place)
    else:
        model = t.LlavaForConditionalGeneration(
            t.LlavaConfig(vision_config=vision, text_config=text, image_seq_length=16, **shared)
        )
        images = pil("clip", "CLIPImageProcessor")(**sizes)
        processor = t.LlavaProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **place)
    with torch.no_grad():  # random weights answer from the picture only where its tokens are loud
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4 if "projector" in name or "patch_embedding" in name else 3)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path, width: int = 32) -> Path:
    """A random CLIP whose tower has the width of the tiny LLaVA's."""
    import transformers as t

    small = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**small, "vocab_size": 84, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(0)
    t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    t.AutoTokenizer.from_pretrained(ROOT / "models" / "mini").save_pretrained(folder)
    return folder


def build(folder: Path, next_: bool, **options):
    """The wrapper around the saved model, float32 on the CPU."""
    return load(str(save(folder, next_)), PROMPT, dtype="float32", device="cpu", **options)


def pictures(n: int = len(SIZES)) -> list[Image.Image]:
    """`n` images of different sizes: coarse random colours, so that crops differ."""
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
        for size in SIZES[:n]
    ]


def inputs(llava, images, texts):
    """The processor's output for prompts and their images, padded."""
    return llava.processor(images=images or None, text=texts, return_tensors="pt", padding=True)


def asked(images=None):
    """Five images of five sizes, one question each."""
    return (images or pictures()), [PROMPT.format(question=q) for q in QUESTIONS]


def new_tokens(model, given, **options):
    """What `generate` adds to each prompt."""
    out = model.generate(**given, **{"max_new_tokens": 5, "do_sample": False, **options})
    return out[:, given["input_ids"].shape[1] :].tolist()


def converted(llava, dtype: torch.dtype):
    """A copy of the wrapper with its model in `dtype`; the fixture itself would come back rounded."""
    llava.cache.clear()
    other = deepcopy(llava)
    other.model.to(dtype)
    return other


def full_size_tower() -> torch.nn.Module:
    """A LLaVA with the published tower (CLIP-L/14-336, 24 blocks of width 1024) and the small language model."""
    return full_tower(parts()[1])
