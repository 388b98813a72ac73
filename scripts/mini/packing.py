"""Several questions about one image in one sequence: each sees the image and itself, none sees another."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .vocabulary import ID, make_tokenizer
from .world import GRID

TOKENIZER = make_tokenizer()


@lru_cache(maxsize=1 << 17)
def encode(question: str, answer: str) -> tuple[tuple[int, ...], int]:
    """Ids of `question ASSISTANT: answer </s>` and how many of them are the answer's (with </s>)."""
    ids = TOKENIZER(question + " ASSISTANT:", add_special_tokens=False).input_ids
    tail = [*TOKENIZER(answer, add_special_tokens=False).input_ids, ID["</s>"]]
    return (*ids, *tail), len(tail)


def grid_index(side: int, corner: tuple[int, int]) -> np.ndarray:
    """Patch numbers on the 24 x 24 grid of a crop of side x side patches: (N,)."""
    return ((np.arange(side)[:, None] + corner[0]) * GRID + np.arange(side) + corner[1]).reshape(-1)


def pack(questions: list[list[tuple[str, str, str]]], index: np.ndarray, raster: np.ndarray) -> dict:
    """Questions (question, answer, type) of each image after its N visual tokens.

    index (N,): patch numbers; raster (B,): visual positions are the patch's own number, else they are contiguous.
    Gives ids (B, M), target (B, M), -1 where no answer token is due; position (B, 2 + N + M);
    mask (B, 1, 2 + N + M, 2 + N + M); type and group: type and (image, question) of each answer token.
    """
    rows = []
    for asked in questions:
        ids, target, segment, offset = [], [], [], []
        for j, (q, a, _) in enumerate(asked):
            w, k = encode(q, a)
            ids += w[:-1]
            target += [-1] * (len(w) - 1 - k) + list(w[-k:])
            segment += [j] * (len(w) - 1)
            offset += range(len(w) - 1)
        rows.append((ids, target, segment, offset))
    b, n, m = len(rows), len(index), max(len(r[0]) for r in rows)
    ids, target, segment, offset = (
        torch.tensor([r[k] + [fill] * (m - len(r[k])) for r in rows]) for k, fill in enumerate((0, -1, -1, 0)))
    own, r = torch.as_tensor(index)[None], torch.as_tensor(raster)[:, None]
    visual = torch.where(r, own, torch.arange(n)[None]) + 2
    start = torch.where(r, GRID * GRID + 2, n + 2)
    position = torch.cat([torch.tensor([[0, 1]]).expand(b, 2), visual, start + offset], 1)
    size = 2 + n + m
    mask = torch.zeros(b, size, size, dtype=torch.bool)
    mask[:, :2 + n, :2 + n] = torch.ones(2 + n, 2 + n).tril().bool()
    mask[:, 2 + n:, :2 + n] = True
    mask[:, 2 + n:, 2 + n:] = (segment[:, :, None] == segment[:, None]) & torch.ones(m, m).tril().bool()
    mask |= torch.eye(size, dtype=torch.bool)
    group = [(i, s) for i, (ts, ss) in enumerate(zip(target.tolist(), segment.tolist(), strict=True))
             for t, s in zip(ts, ss, strict=True) if t >= 0]
    return {"ids": ids, "target": target, "position": position, "mask": mask[:, None], "group": group,
            "type": [questions[i][j][2] for i, j in group]}


def answer_loss(logits: Tensor, q: dict) -> Tensor:
    """Cross entropy over the answer tokens (n, V); the end of an answer counts a fifth."""
    t = q["target"][q["target"] >= 0]
    w = torch.where(t == ID["</s>"], 0.2, 1.0)
    return (F.cross_entropy(logits, t, reduction="none") * w).sum() / w.sum()


def score(logits: Tensor, q: dict, into: dict[str, list]) -> None:
    """Adds to into[type], for each question, whether all its answer tokens are right (each after the right ones)."""
    right = (logits.argmax(-1) == q["target"][q["target"] >= 0]).tolist()
    whole = {}
    for g, kind, ok in zip(q["group"], q["type"], right, strict=True):
        whole[g] = (kind, whole.get(g, (kind, True))[1] and ok)
    for kind, ok in whole.values():
        into.setdefault(kind, []).append(ok)
