"""What a text-aware method gets to know of the question."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from pruning.tokens import Question

# Function words of English, and words every question about an image holds; what is left are content words.
STOP_WORDS = frozenset(
    "a an and any are as at be been being between both but by can could did do does each for from had has have "
    "how i if in into is it its me more most my no not of on one or other please she so some such than that the "
    "their them there these they this those to too very was we were what when where which who whom whose why will "
    "with would yes you your image picture photo photograph object objects answer question using single word phrase "
    "following shown visible".split()
)
# What opens a user's turn and what ends it, in the templates of LLaVA-1.5 and NeXT (Vicuna, Mistral, Llama 3, Yi)
_USER = re.compile(r"USER:|Human:|\[INST\]|<\|im_start\|>user|<\|start_header_id\|>user<\|end_header_id\|>")
_END = re.compile(r"ASSISTANT:|Assistant:|\[/INST\]|<\|im_end\|>|<\|eot_id\|>|</s>")
_SPECIAL = re.compile(r"<image>|<s>|<pad>|<unk>|<\|begin_of_text\|>")


def content_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the content words of `text`; single letters (options A, B, C) are none."""
    words = re.finditer(r"[\w'-]+", text)
    return [w.span() for w in words if w[0].lower() not in STOP_WORDS and (len(w[0]) > 1 or w[0].isdigit())]


def unmarked(question: str) -> str:
    """A question without image markers of its own; LLaVA's evaluation drops them too (model_vqa_science.py)."""
    return question.replace("<image>", "").strip() if "<image>" in question else question


def strip_template(prompt: str) -> str:
    """The last user turn of a rendered prompt, without role markers and the image placeholder."""
    turns = (_END.split(turn, maxsplit=1)[0].strip() for turn in _USER.split(_SPECIAL.sub(" ", prompt)))
    said = [turn for turn in turns if turn]
    return said[-1] if said else ""


def read_questions(texts: list[str], tokenizer: Any, embed: nn.Module, clip: Any = None) -> Question:
    """Questions as a text-aware method sees them.

    Args:
        texts: B questions, without template.
        tokenizer: a fast tokenizer (its character offsets mark the content words).
        embed: the language model's input embedding.
        clip: a function from texts to (B, M, D_clip), when CLIP's text tower is at hand. Otherwise the mean
            embedding of the content words stands in, to be compared with the projected tokens.

    Returns:
        A Question with embeddings (B, T, D_llm), right-padded.
    """
    encoded = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    length = max(1, *(len(e["input_ids"]) for e in encoded)) if encoded else 1
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    content = mask.clone()
    for row, (text, e) in enumerate(zip(texts, encoded)):
        n = len(e["input_ids"])
        ids[row, :n] = torch.tensor(e["input_ids"], dtype=torch.long)
        mask[row, :n] = True
        spans = content_spans(text)
        inside = [any(a < end and start < b for start, end in spans) for a, b in e["offset_mapping"]]
        content[row, :n] = torch.tensor(inside, dtype=torch.bool)
    device = embed.weight.device  # `meta` where accelerate has offloaded the weights: its hook moves the ids
    embeddings = embed(ids if device.type == "meta" else ids.to(device))
    mask, content = mask.to(embeddings.device), content.to(embeddings.device)
    if clip is not None:
        return Question(embeddings, mask, content, clip=clip(texts), clip_is_real=True)
    return Question(embeddings, mask, content, clip=_mean(embeddings, mask, content)[:, None])


def _mean(embeddings: Tensor, mask: Tensor, content: Tensor) -> Tensor:
    """Mean over the content words, over all words where there is none: (B, T, D) -> (B, D)."""
    chosen = torch.where(content.any(1, keepdim=True), content, mask).float()[..., None]
    return (embeddings.float() * chosen).sum(1) / chosen.sum(1).clamp(min=1)
