"""Loads a LLaVA folder or hub name, with errors that say what to do."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from models.guard import guard_torchvision
from models.versions import pil
from pruning.errors import InputError, one_of

ARCHITECTURES = {  # config.json's architecture -> our wrapper
    "LlavaForConditionalGeneration": ("models.llava", "Llava"),
    "LlavaNextForConditionalGeneration": ("models.llava_next", "LlavaNext"),
}
PROTOCOLS = ("pad", "crop")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    path: str,
    prompt: str,
    dtype: str = "auto",
    device: str = "auto",
    image_protocol: str | None = None,
    clip_text: str | None = None,
    **options: Any,
) -> Any:
    """A `models.llava.Llava` (or `LlavaNext`) from a folder or a hub name.

    Args:
        path: folder with config.json and safetensors, or a hub name such as `llava-hf/llava-1.5-7b-hf`.
        prompt: template with `<image>` and `{question}`.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is float32 on a CPU, bfloat16 on a GPU.
        device: `cpu`, `cuda`; `auto` takes the GPU where there is one.
        image_protocol: LLaVA-1.5 only. `pad` to a square with the mean colour (LLaVA's own evaluation) or `crop`
            its centre (the processor of the llava-hf checkpoints); None leaves the saved processor alone.
        clip_text: folder or hub name of the CLIP whose text tower text-aware methods read (`models.clip`).
        options: further arguments of the wrapper.

    Raises:
        InputError: nothing at `path`, weights of another architecture, unknown dtype or option.
    """
    check(path)
    guard_torchvision()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    one_of("dtype", dtype, DTYPES)
    dtype, device = settled(dtype, device)
    if not Path(path).exists():
        from models.hub import require

        require(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=getattr(torch, dtype))
        processor = AutoProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load model '{path}': {reason}") from error
    _check_architecture(path, type(model).__name__)
    processor.tokenizer.padding_side = "left"
    module, name = ARCHITECTURES[type(model).__name__]
    if image_protocol is not None:
        if name != "Llava":
            raise InputError(f"image_protocol is a choice for LLaVA-1.5; '{path}' cuts crops of its own")
        processor.image_processor = square_processor(processor.image_processor, image_protocol)
    llava = getattr(import_module(module), name)(model.eval().to(device), processor, prompt, **options)
    if clip_text is not None:
        from models.clip import load_clip

        llava.clip_text = load_clip(clip_text, llava.tower, llava.embed.weight)
    return llava


def settled(dtype: str, device: str) -> tuple[str, str]:
    """What `auto` is on this machine, for either; others as they are."""
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype, device


def square_processor(image_processor: Any, protocol: str) -> Any:
    """An image processor that makes squares by padding or by cropping, with the sizes and colours of the given one.

    Raises:
        InputError: unknown protocol.
    """
    one_of("image_protocol", protocol, PROTOCOLS)
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    values = {name: getattr(image_processor, name) for name in names}
    return pil("llava", "LlavaImageProcessor")(do_pad=protocol == "pad", **values)


def check(path: str) -> None:
    """Raises InputError where `path` is a folder without a LLaVA, before anything heavy is imported."""
    folder = Path(path)
    if not folder.exists():
        from models.hub import is_name

        if not is_name(path):
            raise InputError(f"model folder '{path}' not found; give a LLaVA folder or a hub name (org/name)")
        return
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"model folder '{path}' holds no config.json; expected a saved LLaVA")
    try:
        found = json.loads(config.read_text()).get("architectures") or ["none"]
    except json.JSONDecodeError as error:
        raise InputError(f"'{config}' is not valid JSON ({error}); save the model again") from error
    _check_architecture(path, found[0])


def _check_architecture(path: str, name: str) -> None:
    if name not in ARCHITECTURES:
        raise InputError(f"model '{path}' is a {name}, expected {' or '.join(ARCHITECTURES)}")
