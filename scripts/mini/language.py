"""The small Llama, and the symbolic stand-in for tower and projector that it learns from."""

import math

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from .labels import NOT_SIGN
from .vocabulary import COLOR_NAMES, ID, PLURALS, SHAPES, VOCAB

DIM, LAYERS, HEADS, MLP = 192, 5, 6, 384


class Language(nn.Module):
    """Llama and its head; `symbols` makes, from labels, the vector that a patch ought to project to."""

    def __init__(self):
        super().__init__()
        config = LlamaConfig(
            vocab_size=len(VOCAB), hidden_size=DIM, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, max_position_embeddings=4096, bos_token_id=ID["<s>"], eos_token_id=ID["</s>"],
            pad_token_id=ID["<pad>"], rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False)
        config._attn_implementation = "sdpa"
        self.llama = LlamaModel(config)
        self.head = nn.Linear(DIM, len(VOCAB), bias=False)
        self.ground = nn.Parameter(torch.randn(DIM) * 0.3)
        self.heart = nn.Parameter(torch.randn(DIM) * 0.3)
        self.digit = nn.Parameter(torch.randn(3, NOT_SIGN, DIM) * 0.2)
        self.where = nn.Linear(18, DIM)
        self.register_buffer("shape_ids", torch.tensor([ID[s] for s in SHAPES] + [ID["sign"]]), persistent=False)
        self.register_buffer("color_ids", torch.tensor([ID[c] for c in COLOR_NAMES]), persistent=False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Half of the heads start by matching like with like; "stars" starts near "star"."""
        e = self.llama.embed_tokens.weight
        e.normal_(0, 0.3)
        for one, many in zip(SHAPES, PLURALS, strict=True):
            e[ID[many]] = 0.9 * e[ID[one]] + 0.4 * e[ID[many]]
        size = DIM // HEADS
        for layer in self.llama.layers:
            for p in layer.parameters():
                if p.ndim == 2:
                    p.normal_(0, 0.6 / math.sqrt(p.shape[1]))
            for h in range(HEADS // 2):
                w = torch.linalg.qr(torch.randn(DIM, size))[0].T
                layer.self_attn.q_proj.weight[h * size:(h + 1) * size] = w
                layer.self_attn.k_proj.weight[h * size:(h + 1) * size] = w
        self.head.weight.copy_(e * 0.3)
        nn.init.normal_(self.where.weight, 0, 0.1)

    def place(self, xy: Tensor) -> Tensor:
        """Position code of xy in [-1, 1]: (..., 2) -> (..., D)."""
        a = xy[..., None] * torch.arange(1, 5) * (math.pi / 2)
        return self.where(torch.cat([xy, a.sin().flatten(-2), a.cos().flatten(-2)], -1))

    def symbols(self, t: dict[str, Tensor], xy: Tensor) -> Tensor:
        """Labels t (B, N) and centres xy (B, N, 2) in [-1, 1] -> vectors (B, N, D)."""
        e = self.llama.embed_tokens.weight
        none = torch.zeros(1, DIM)
        out = torch.cat([e[self.shape_ids], self.ground[None]])[t["shape"]] + torch.cat([e[self.color_ids], none])[t["color"]]
        out = out + sum(torch.cat([self.digit[i], none])[t["digits"][..., i]] for i in range(3))
        return out + t["mass"][..., None] * self.heart + self.place(xy)

    def logits(self, visual: Tensor, q: dict) -> Tensor:
        """Visual tokens (B, N, D) and packed questions (see packing.py) -> logits at the n answer tokens (n, V)."""
        e, (b, n) = self.llama.embed_tokens, visual.shape[:2]
        start = e(torch.tensor([[ID["<s>"], ID["USER:"]]]).expand(b, 2))
        x = torch.cat([start, visual, e(q["ids"])], 1)
        h = self.llama(inputs_embeds=x, attention_mask=q["mask"], position_ids=q["position"], use_cache=False)
        return self.head(h.last_hidden_state[:, 2 + n:][q["target"] >= 0])
