"""The CLIP vision tower, and what it is taught about every patch and about the whole image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from .vocabulary import COLOR_NAMES, GROUND, SHAPES, SIGN
from .world import GRID, PATCH, PX

WIDTH, LAYERS, HEADS = 192, 6, 6
N_PAIR = len(SHAPES) * len(COLOR_NAMES)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# heads of `dense`: shape | colour | heart | three digits | offset to the object's centre | nearest digit
SIZES = (len(SHAPES) + 2, len(COLOR_NAMES) + 1, 2, 11, 11, 11, 2, 10)


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) as CLIP's processor gives it."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def sincos(n: int, d: int) -> Tensor:
    """Two-dimensional position code (n * n, d): neighbours are alike."""
    f = torch.exp(torch.linspace(math.log(0.25), math.log(6.0), d // 4)) * math.pi / 6
    a = torch.arange(n)[:, None] * f
    e = torch.cat([a.sin(), a.cos()], 1)
    return torch.cat([e[None].expand(n, n, -1), e[:, None].expand(n, n, -1)], -1).reshape(n * n, d)


class Tower(nn.Module):
    """CLIPVisionModel and the heads of training, which are not shipped."""

    def __init__(self):
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            image_size=PX, patch_size=PATCH, hidden_act="quick_gelu", projection_dim=WIDTH)
        config._attn_implementation = "sdpa"
        self.clip = CLIPVisionModel(config)
        self.dense = nn.Linear(WIDTH, sum(SIZES))
        self.cls_last = nn.Linear(WIDTH, N_PAIR + 1)
        self.cls_read = nn.Linear(WIDTH, N_PAIR + 1)
        self._start()

    @property
    def vision(self) -> nn.Module:
        return getattr(self.clip, "vision_model", self.clip)

    @torch.no_grad()
    def _start(self) -> None:
        """Attention starts local: positions that are alike attend to each other."""
        e = self.vision.embeddings
        e.position_embedding.weight[1:] = sincos(GRID, WIDTH) * 0.5
        e.position_embedding.weight[0] = 0
        e.class_embedding.normal_(0, 0.5)
        e.patch_embedding.weight.normal_(0, 1 / math.sqrt(3 * PATCH * PATCH))
        for layer in self.vision.encoder.layers:
            w = torch.cat([torch.linalg.qr(torch.randn(WIDTH, WIDTH // HEADS))[0].T for _ in range(HEADS)])
            layer.self_attn.q_proj.weight.copy_(w * 1.5)
            layer.self_attn.k_proj.weight.copy_(w * 1.5)
            for m in (layer.self_attn.v_proj, layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2):
                m.weight.normal_(0, 0.5 / math.sqrt(m.weight.shape[1]))

    def forward(self, pixels: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, px, px) of a crop whose first patch is at corner (row, column) of the 24 x 24 grid.

        Gives the layer that the projector reads (B, 1 + N, D), and CLS after the last layer (B, D).
        """
        e = self.vision.embeddings
        x = e.patch_embedding(pixels)
        g, p = x.shape[-1], e.position_embedding.weight
        grid = p[1:].view(GRID, GRID, -1)[corner[0]:corner[0] + g, corner[1]:corner[1] + g].reshape(g * g, -1)
        cls = (e.class_embedding + p[0]).expand(len(x), 1, -1)
        x = self.vision.pre_layrnorm(torch.cat([cls, x.flatten(2).transpose(1, 2) + grid], 1))
        read = x
        for i, layer in enumerate(self.vision.encoder.layers):
            if i == LAYERS - 1:
                read = x
            x = layer(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
        return read, self.vision.post_layernorm(x[:, 0])


def tower_losses(tower: Tower, read: Tensor, last: Tensor, t: dict[str, Tensor], side: int) -> tuple[dict, dict]:
    """Losses of the patch labels t ((B, N) each, see labels.py) and of CLS; and accuracies, all by name."""
    shape, color, heart, d1, d2, d3, offset, near = tower.dense(read[:, 1:]).split(SIZES, -1)
    ground, sign, thing = t["shape"] == GROUND, t["shape"] == SIGN, t["shape"] < SIGN
    w = torch.ones(len(SHAPES) + 2)
    w[GROUND] = 0.25
    here = torch.arange(side) * PATCH + PATCH / 2
    here = torch.stack(torch.meshgrid(here, here, indexing="xy"), -1).reshape(1, side * side, 2)
    off = (t["middle"] - here) / PATCH
    four = torch.tensor(4.0)
    losses = {
        "shape": F.cross_entropy(shape.flatten(0, 1), t["shape"].flatten(), w),
        "color": F.cross_entropy(color.flatten(0, 1), t["color"].flatten(), torch.tensor([1.0] * len(COLOR_NAMES) + [0.25])),
        "heart": F.cross_entropy(heart.flatten(0, 1), t["heart"].flatten(), torch.tensor([1.0, 4.0])),
        "offset": F.smooth_l1_loss(offset[~ground], off[~ground]),
        "cls": F.binary_cross_entropy_with_logits(tower.cls_last(last), t["pairs"], pos_weight=four),
        "cls_read": F.binary_cross_entropy_with_logits(tower.cls_read(read[:, 0]), t["pairs"], pos_weight=four),
    }
    scores = {"patch_shape": (shape.argmax(-1) == t["shape"])[thing], "patch_color": (color.argmax(-1) == t["color"])[thing]}
    if sign.any():
        goal, said = t["digits"][sign], [d[sign] for d in (d1, d2, d3)]
        losses["digit"] = sum(F.cross_entropy(d, goal[:, i]) for i, d in enumerate(said)) / 3
        losses["near"] = F.cross_entropy(near[sign], t["near"][sign])
        scores["patch_number"] = torch.stack([d.argmax(-1) == goal[:, i] for i, d in enumerate(said)]).all(0)
    return losses, {k: v.float().mean() for k, v in scores.items() if v.numel()}
