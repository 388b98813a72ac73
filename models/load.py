"""Loads a LLaVA folder or hub name, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.guard import guard_torchvision
from pruning.errors import InputError

ARCHITECTURES = ("LlavaForConditionalGeneration",)


def load(path: str, prompt: str, dtype: str = "auto", device: str = "auto", **options: Any) -> Any:
    """A `models.llava.Llava` from a folder or a hub name.

    Args:
        path: folder with config.json and safetensors, or a hub name such as `llava-hf/llava-1.5-7b-hf`.
        prompt: template with `<image>` and `{question}`.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is float32 on a CPU, bfloat16 on a GPU.
        device: `cpu`, `cuda`; `auto` takes the GPU where there is one.

    Raises:
        InputError: nothing at `path`, weights of another architecture, unknown dtype.
    """
    check(path)
    guard_torchvision()
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from models.llava import Llava

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}")
    try:
        model = LlavaForConditionalGeneration.from_pretrained(path, dtype=getattr(torch, dtype))
        processor = AutoProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load model '{path}': {reason}") from error
    processor.tokenizer.padding_side = "left"
    return Llava(model.eval().to(device), processor, prompt, **options)


def check(path: str) -> None:
    """Raises InputError where `path` is a folder without a LLaVA, before anything heavy is imported."""
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise InputError(f"model folder '{path}' not found; give a LLaVA folder or a hub name (org/name)")
        return
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"model folder '{path}' holds no config.json; expected a saved LLaVA")
    try:
        found = json.loads(config.read_text()).get("architectures") or ["none"]
    except json.JSONDecodeError as error:
        raise InputError(f"'{config}' is not valid JSON ({error}); save the model again") from error
    if found[0] not in ARCHITECTURES:
        raise InputError(f"model '{path}' is a {found[0]}, expected {' or '.join(ARCHITECTURES)}")
