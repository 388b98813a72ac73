"""The sizes of a LLaVA, read from its config.json without torch: what can be known before anything is loaded.

Token counts bound the budgets, parameters and operations give the memory and hours that a run will need. Where the
model is not on this machine, the published configuration stands in (`models/published/`, the sizes of the llava-hf
checkpoints' own config.json).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError

if TYPE_CHECKING:
    from pruning.base import Pruner

PUBLISHED = Path(__file__).resolve().parent / "published"
DEFAULTS = {  # what a config.json leaves out: the defaults of transformers' configuration classes
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}


@dataclass(frozen=True)
class Stack:
    """A stack of transformer blocks."""

    layers: int
    width: int
    mlp: int  # width inside the MLP
    kv: int  # width of keys, and of values
    heads_width: int  # width of queries
    gated: bool  # a Llama block (three matrices in the MLP, no biases), else a CLIP block

    @property
    def matrices(self) -> int:
        """Weights of one block that a token is multiplied with."""
        attention = 2 * self.width * self.heads_width + 2 * self.width * self.kv
        return attention + (3 if self.gated else 2) * self.width * self.mlp

    @property
    def parameters(self) -> int:
        """All parameters of the blocks."""
        biases = 2 * self.width if self.gated else 4 * self.width + self.mlp + self.width + 4 * self.width
        return self.layers * (self.matrices + biases)

    def flops(self, tokens: float, layers: int | None = None) -> float:
        """Floating-point operations (2 a multiply-add) of one pass of `tokens` through `layers` blocks."""
        block = 2 * tokens * self.matrices + 4 * tokens**2 * self.heads_width
        return (self.layers if layers is None else layers) * block


@dataclass(frozen=True)
class Shape:
    """Sizes of one LLaVA."""

    architecture: str
    patches: int  # N of a crop
    crops: int  # of the largest image: 1, or 5 for LLaVA-NeXT
    patch: int  # pixels a side
    depth: int  # blocks of the tower that run
    vision: Stack
    text: Stack
    vocabulary: int
    tied: bool  # input and output embeddings are one

    @property
    def visual_tokens(self) -> int:
        """Of the largest image: 576, or 2880 for LLaVA-NeXT."""
        return self.crops * self.patches

    @property
    def parameters(self) -> int:
        """Of the whole model, the tower's unused last block included."""
        v, t = self.vision.width, self.text.width
        tower = v + 3 * self.patch**2 * v + (self.patches + 1) * v + 4 * v + self.vision.parameters
        projector = v * t + t + t * t + t
        newline = t if self.crops > 1 else 0
        vocabulary = (1 if self.tied else 2) * self.vocabulary * t
        return tower + projector + newline + self.text.parameters + t + vocabulary

    def gigabytes(self, batch: int, questions: int, cache_mb: int, size: int = 2) -> float:
        """GPU memory of a run in 10^9 bytes (an estimate).

        Weights of `size` bytes, the store of tower states, and the images of a batch.
        """
        images = batch * self.image_bytes(questions, size)
        return (size * self.parameters + images) / 1e9 + cache_mb * 2**20 / 1e9

    def image_bytes(self, questions: int, size: int = 2) -> int:
        """GPU memory in bytes of one image of a batch, numbers of `size` bytes (an estimate).

        Keys and values of all its visual tokens and of `questions` questions of 64 tokens, with four activations of
        the MLP's width.
        """
        tokens = self.visual_tokens + 64 * questions
        return tokens * size * (2 * self.text.layers * self.text.kv + 4 * self.text.mlp)

    def tower_flops(self) -> float:
        """Operations of the tower and projector on the largest image."""
        tower = self.vision.flops(self.patches + 1, self.depth)
        projector = 2 * self.patches * self.text.width * (self.vision.width + self.text.width)
        return self.crops * (tower + projector)

    def answer_flops(self, visual: float, question: int = 80, answer: int = 4) -> float:
        """Operations of the language model on one prompt of `visual` and `question` tokens and a short answer."""
        prompt = visual + question
        decode = answer * (self.text.flops(1) + 4 * prompt * self.text.heads_width * self.text.layers)
        head = 2 * (answer + 1) * self.text.width * self.vocabulary
        return self.text.flops(prompt) + decode + head


def read_shape(path: str, published: str | None = None) -> Shape | None:
    """The sizes of the model at `path` (folder, or hub name in the cache), else of the published configuration.

    Raises:
        InputError: the published configuration is none of `models/published/`.
    """
    file = config_file(path)
    if file is None and published is not None:
        file = PUBLISHED / f"{published}.json"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in PUBLISHED.glob("*.json")))
            raise InputError(f"model.published must be one of {known}, got '{published}'")
    return None if file is None else parse(json.loads(file.read_text()))


def config_file(path: str) -> Path | None:
    """config.json of a folder, or of a hub name in the local cache; None where there is none."""
    file = Path(path) / "config.json"
    if file.is_file():
        return file
    from models.hub import is_name

    if Path(path).exists() or not is_name(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json")
    return Path(found) if isinstance(found, str) else None


def parse(config: Mapping[str, Any]) -> Shape | None:
    """The sizes in a config.json; None where it names no patches (not a CLIP tower)."""
    vision = {**DEFAULTS["clip_vision_model"], **config.get("vision_config", {})}
    given = config.get("text_config", {})
    text = {**DEFAULTS.get(given.get("model_type", "llama"), DEFAULTS["llama"]), **given}
    if "image_size" not in vision or "patch_size" not in vision:
        return None
    side, pinpoints = vision["image_size"], config.get("image_grid_pinpoints")
    layer, blocks = config.get("vision_feature_layer", -2), vision["num_hidden_layers"]
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    return Shape(
        architecture=(config.get("architectures") or ["unknown"])[0],
        patches=(side // vision["patch_size"]) ** 2,
        crops=1 + max((h // side) * (w // side) for h, w in pinpoints) if pinpoints else 1,
        patch=vision["patch_size"],
        depth=blocks + 1 + layer if layer < 0 else layer,
        vision=stack(vision, vision["hidden_size"], vision["hidden_size"], gated=False),
        text=stack(text, (text.get("num_key_value_heads") or heads) * head, heads * head, gated=True),
        vocabulary=text.get("vocab_size", 32000),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
    )


def stack(values: Mapping[str, Any], kv: int, queries: int, gated: bool) -> Stack:
    """One of the two stacks of a configuration."""
    return Stack(values["num_hidden_layers"], values["hidden_size"], values["intermediate_size"], kv, queries, gated)


def check_budget(pruner: Pruner, tokens: int, layers: int, crops: int = 1) -> None:
    """Whether a method can reach its budget on a model.

    Args:
        tokens: visual tokens of the largest image.
        layers: of the language model.
        crops: of the largest image.

    Raises:
        InputError: the budget is outside 1..tokens or uneven over the crops, or the method does not fit the model.
        OutOfReach: it is below what a method inside the language model can meet.
    """
    keep = pruner.keeps(tokens)
    if not pruner.inside_language_model:
        if 0 < keep < tokens:
            crop_share(keep, crops)
    elif crops > 1:
        raise InputError(f"{type(pruner).__name__} prunes inside the language model: for LLaVA-1.5 only")
    else:
        pruner.plan(layers, tokens)


def crop_share(budget: int, crops: int) -> int:
    """One crop's part of a budget that is the total over `crops` crops.

    Raises:
        InputError: not divisible; names the nearest budgets.
    """
    if budget % crops:
        near = sorted({max(1, budget // crops) * crops, -(-budget // crops) * crops})
        raise InputError(
            f"budget is the total over {crops} crops and must be divisible by {crops}, got {budget}; "
            f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(map(str, near))}"
        )
    return budget // crops
