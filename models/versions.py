"""Names that differ between the versions of transformers that are supported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def cache_argument(language: nn.Module) -> str:
    """The name under which a decoder takes its key-value cache: `cache` from 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(language.forward).parameters else "past_key_values"


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The key-value cache among a decoder's or a layer's arguments, or None."""
    return kwargs.get("cache", kwargs.get("past_key_values"))


def mask_argument(forward: Callable[..., Any]) -> dict[str, None]:
    """The second mask, unused, that blocks and attention of the CLIP tower want in 4.57."""
    name = "causal_attention_mask"
    return {name: None} if name in inspect.signature(forward).parameters else {}


def returns_output() -> bool:
    """Whether `get_image_features` wraps the features in a model output, as from 5.0 on; 4.57 returns the list."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def pil(model: str, name: str) -> type:
    """The PIL variant of an image processor class: `{name}Pil` from 5.17 on, the only slow one before."""
    module = import_module(f"transformers.models.{model}")
    return getattr(module, f"{name}Pil", None) or getattr(module, name)
