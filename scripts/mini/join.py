"""Tower, two-layer projector and language model together."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .labels import pair_labels, patch_labels
from .language import DIM, Language
from .packing import grid_index, pack, score
from .questions import make_questions
from .tower import WIDTH, Tower, normalise
from .vocabulary import GROUND, NO_COLOR, SIGN
from .world import GRID, PATCH, PX, World, shifted


class Joined(nn.Module):
    """The whole model in training: what is shipped, and the heads and symbol tables that only training uses."""

    def __init__(self):
        super().__init__()
        self.tower, self.language = Tower(), Language()
        self.absolute = nn.Linear(WIDTH, 2)  # training only: centre of the patch's object, in [-1, 1]
        self.linear_1, self.linear_2 = nn.Linear(WIDTH, DIM), nn.Linear(DIM, DIM)

    def project(self, read: Tensor) -> Tensor:
        """(B, 1 + N, D_tower) -> (B, N, D): CLS is dropped."""
        return self.linear_2(F.gelu(self.linear_1(read[:, 1:])))


def make_batch(world: World, size: int, px: int, n_objects: tuple[int, int], weights: dict[str, float], *, n_questions: int = 10,
               p_sign: float = 1.0, n_signs: int = 1, pixels: bool = True, p_jpeg: float = 0.5) -> dict:
    """Fresh scenes, each a crop of px at one random place of the image.

    Gives corner, side, labels t ((B, N) each, pairs (B, 97)), xy (B, N, 2) centres in the full image in [-1, 1],
    questions a list per scene, and pixels (B, 3, px, px) where asked for.
    """
    side = px // PATCH
    corner = tuple(int(v) for v in world.rng.integers(0, GRID - side + 1, 2))
    images, labels, questions = [], [], []
    while len(labels) < size:
        objects = world.layout(px, n_objects, p_sign, n_signs)
        asked = make_questions(world.rng, shifted(objects, corner[1] * PATCH, corner[0] * PATCH), n_questions, weights)
        if not asked:
            continue
        labels.append({**patch_labels(objects, px), "pairs": pair_labels(objects)})
        questions.append(asked)
        if pixels:
            images.append(world.render(objects, px, p_jpeg))
    t = {k: torch.as_tensor(np.stack([x[k] for x in labels])) for k in labels[0]}
    xy = (t["middle"] + torch.tensor([corner[1], corner[0]]) * PATCH) / (PX / 2) - 1
    return {"corner": corner, "side": side, "t": t, "xy": xy.float(), "questions": questions,
            "pixels": normalise(torch.from_numpy(np.stack(images))) if pixels else None}


def pack_batch(batch: dict, rng: np.random.Generator) -> dict:
    """The batch's questions after its full grid of patches."""
    return pack(batch["questions"], grid_index(batch["side"], batch["corner"]), rng.random(len(batch["questions"])) < 0.5)


def token_losses(language: Language, visual: Tensor, t: dict[str, Tensor], xy: Tensor) -> dict[str, Tensor]:
    """Projected tokens (B, N, D) against the symbolic vectors of their labels.

    all: regression; place: its share in the space of the position code; name: shape and colour by nearest word embedding;
    number: digits by nearest digit vector. Ground patches weigh 0.15.
    """
    with torch.no_grad():
        goal = language.symbols(t, xy)
        basis = torch.linalg.qr(language.where.weight)[0]  # (D, 18)
        e, table = language.llama.embed_tokens.weight.clone(), language.digit.clone()
    ground, sign = t["shape"] == GROUND, t["shape"] == SIGN
    w = torch.where(ground, 0.15, 1.0)
    miss = visual - goal
    out = {"all": ((miss ** 2).mean(-1) * w).sum() / w.sum(), "place": (((miss @ basis) ** 2).sum(-1) * w).sum() / w.sum()}
    on, hue = visual[~ground], t["color"][~ground]
    out["name"] = F.cross_entropy(on @ e[language.shape_ids].T, t["shape"][~ground])
    out["name"] = out["name"] + F.cross_entropy((on @ e[language.color_ids].T)[hue < NO_COLOR], hue[hue < NO_COLOR])
    if sign.any():
        out["number"] = visual.new_zeros(())
        for i, d in enumerate(t["digits"][sign].unbind(-1)):
            own = miss[sign] + table[i][d]  # what the patch says in this place, the rest taken as right
            near = 2 * (own @ table[i].T - 0.5 * (table[i] ** 2).sum(-1))
            out["number"] = out["number"] + F.cross_entropy(near, d) / 3
    return out


@torch.no_grad()
def evaluate(model: Joined, weights: dict[str, float], scenes: int = 200, seed: int = 777, symbolic: bool = False) -> dict[str, float]:
    """Accuracy a question type on fresh full-size scenes, all 576 tokens, and their mean; symbolic: language half alone."""
    world, into = World(seed), {}
    for _ in range(scenes // 10):
        batch = make_batch(world, 10, PX, (4, 9), weights, pixels=not symbolic)
        if symbolic:
            visual = model.language.symbols(batch["t"], batch["xy"])
        else:
            visual = model.project(model.tower(batch["pixels"])[0])
        q = pack_batch(batch, world.rng)
        score(model.language.logits(visual, q), q, into)
    out = {k: float(np.mean(into[k])) for k in weights if k in into}
    return {**out, "mean": float(np.mean(list(out.values())))}
