"""How much each visual token resembles the question, for the methods that use CLIP's joint image-text space."""

from __future__ import annotations

from torch import Tensor

from pruning.errors import InputError
from pruning.ops import dots, unit
from pruning.tokens import Question, VisualTokens

SIGNS = ("auto", "negative", "positive")


def relevance(tokens: VisualTokens, question: Question, sign: str, cosine: bool) -> Tensor:
    """Signed mean over the question's text vectors of p . t, as cosines or as plain products: (B, n) float32.

    `negative` is the official rule of TRIM and CDPruner: the patch tokens of CLIP's own tower are anti-aligned with
    its text vectors, so the *least* similar token is the most relevant. A stand-in made of the language model's own
    space is aligned, hence `auto`: negative where `question.clip_is_real`, else positive. All-zero text vectors are
    padding; without any text the relevance is 0 everywhere.

    Raises:
        InputError: the question carries no text vectors.
    """
    if question.clip is None:
        raise InputError("this method reads CLIP text vectors, but the question carries none; give a text tower")
    text = question.clip.float()  # (B, M, D_clip)
    count = text.ne(0).any(-1).sum(1).clamp(min=1)  # (B,)
    mean = (unit(text) if cosine else text).sum(1) / count[:, None]  # (B, D_clip): the mean of products is a product
    patches = tokens.read("clip")  # (B, n, D_clip)
    similar = dots(patches, mean)  # (B, n)
    if cosine:
        similar = similar / patches.norm(dim=-1).clamp(min=1e-12)
    negative = question.clip_is_real if sign == "auto" else sign == "negative"
    return -similar if negative else similar
