"""LLaVA's CLIP tower, run block by block from the unmodified Hugging Face modules.

Blocks run up to the one whose output the projector reads; CLIP's last block is never needed. The CLS row is
recomputed from that block's own projections (one query, so O(n) memory), hence fused attention stays on.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.cache import StateCache
from models.images import Pixels, fingerprint, read
from models.versions import mask_argument
from pruning.base import Pruner
from pruning.tokens import VisualTokens, concatenate


class VisionTower:
    """The tower of one LLaVA model, with its projector.

    Attributes:
        depth: blocks that run (L - 1 for `vision_feature_layer = -2`).
        side: patches along each side of a whole crop.
        remembered: places whose states a pass leaves in the cache in any case, for the methods to come.
        grid: rows and columns of patches that become tokens: of the crop, or of its `window`.
    """

    def __init__(self, model: nn.Module, cache: StateCache | None = None) -> None:
        inner = getattr(model, "model", model)
        clip = inner.vision_tower
        self.clip = getattr(clip, "vision_model", clip)  # nested up to transformers 5.0, flat from 5.17
        self.projector = inner.multi_modal_projector
        layers, output = len(self.clip.encoder.layers), model.config.vision_feature_layer
        self.depth = layers + 1 + output if output < 0 else output
        self.blocks = self.clip.encoder.layers
        side = self.side = self.clip.config.image_size // self.clip.config.patch_size
        self.grid = (side, side)
        self.rows, self.columns = slice(0, side), slice(0, side)  # the window of each crop that the tokens come from
        self.cache = StateCache(0) if cache is None else cache
        self.remembered: set[int] = set()
        self.clip_projection: nn.Module | None = None  # visual projection into CLIP's joint space, when given

    @property
    def patches(self) -> int:
        """N, patches of one crop."""
        return self.grid[0] * self.grid[1]

    def window(self, rows: slice, columns: slice) -> VisionTower:
        """The same tower with only a rectangle's patches as tokens: what lies outside (padding) is never selected.

        Up to the first place where a method acts, the blocks see the whole crop. The cache is shared; patch numbers
        and `grid` are those of the rectangle.
        """
        view = copy.copy(self)
        view.rows, view.columns = rows, columns
        view.grid = (rows.stop - rows.start, columns.stop - columns.start)
        return view

    def _inside(self, state: Tensor) -> Tensor:
        """CLS and the window's tokens of whole crops: (B, 1 + side^2, D) -> (B, 1 + N, D)."""
        square = (self.side, self.side)
        if self.grid == square:
            return state
        image = state[:, 1:].unflatten(1, square)[:, self.rows, self.columns]
        return torch.cat([state[:, :1], image.flatten(1, 2)], 1)

    # --- blocks -----------------------------------------------------------------------------------------
    def embed(self, pixels: Tensor | Pixels) -> Tensor:
        """Pixels (B, 3, H, W) -> input of block 0, (B, 1 + N, D)."""
        dtype = self.clip.embeddings.patch_embedding.weight.dtype
        return self.clip.pre_layrnorm(self.clip.embeddings(read(pixels).to(dtype)))

    def embed_patches(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Patches (B, K, 3, p, p) with centres (K, 2) as (row, column) in [0, 1] -> input of block 0, (B, 1 + K, D).

        Position embeddings are interpolated bilinearly at the centres; a patch's own centre gives its own embedding.
        """
        e, side = self.clip.embeddings, self.side
        b, k = patches.shape[:2]
        flat = patches.flatten(0, 1).to(e.patch_embedding.weight.dtype)
        x = e.patch_embedding(flat).reshape(b, k, -1)
        table = e.position_embedding.weight
        image = table[1:].float().reshape(1, side, side, -1)[:, self.rows, self.columns].permute(0, 3, 1, 2)
        where = (positions.flip(-1) * 2 - 1).to(image)[None, None]  # grid_sample wants (x, y) in [-1, 1]
        place = nn.functional.grid_sample(image, where, padding_mode="border", align_corners=False)
        place = place[0, :, 0].T.to(x.dtype)  # (K, D)
        cls = (e.class_embedding + table[0]).expand(b, 1, -1)
        return self.clip.pre_layrnorm(torch.cat([cls, x + place], 1))

    def block(self, layer: int, x: Tensor) -> Tensor:
        """Block `layer`: (B, 1 + n, D) -> (B, 1 + n, D)."""
        module = self.blocks[layer]
        out = module(x, attention_mask=None, **mask_argument(module.forward))
        return out[0] if isinstance(out, tuple) else out  # a tuple in transformers 4.57

    def attend(self, layer: int, x: Tensor, size: Tensor | None) -> Tensor:
        """First half of block `layer` (attention and residual), `log size` (B, n) added to the keys' logits."""
        module = self.blocks[layer]
        bias = None
        if size is not None:
            logs = torch.cat([size.new_zeros(len(size), 1), size.log()], 1).to(x.dtype)  # CLS counts once
            bias = logs[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        extra = mask_argument(module.self_attn.forward)
        out = module.self_attn(hidden_states=module.layer_norm1(x), attention_mask=bias, **extra)
        return x + out[0]

    def feed(self, layer: int, x: Tensor) -> Tensor:
        """Second half of block `layer` (MLP and residual)."""
        module = self.blocks[layer]
        return x + module.mlp(module.layer_norm2(x))

    # --- states -----------------------------------------------------------------------------------------
    def states(self, pixels: Tensor | Pixels, places: set[int], seed: Tensor | None = None) -> dict[int, Tensor]:
        """Unpruned states (B, 1 + N, D) of the window at `places` (the input of that block; `depth`: the output).

        What the cache lacks is computed in one pass of the images that miss any place, from the furthest place that
        the cache has of all of them; `places` and the `remembered` ones on the way go into the cache.
        """
        seed = fingerprint(pixels) if seed is None else seed
        images = seed.tolist()
        found = {place: [self.cache.get(image, place) for image in images] for place in places}
        missing = [b for b in range(len(images)) if any(found[place][b] is None for place in places)]
        if missing:
            gap = min(place for place, rows in found.items() if any(row is None for row in rows))
            start, x = self._nearest(pixels[missing], [images[b] for b in missing], gap)
            for layer in range(start, max(places) + 1):
                for b, state in zip(missing, x):
                    if layer in places:
                        found[layer][b] = state
                    if layer in places | self.remembered:
                        self.cache.put(images[b], layer, state)
                if layer < max(places):
                    x = self.block(layer, x)
        return {place: self._inside(torch.stack(rows)) for place, rows in found.items()}

    def _nearest(self, pixels: Tensor | Pixels, images: list[int], gap: int) -> tuple[int, Tensor]:
        """The furthest place up to `gap` where the cache has all `images`, and their states (B, 1 + N, D) there."""
        for place in range(gap, 0, -1):
            if all(self.cache.has(image, place) for image in images):
                return place, torch.stack([self.cache.get(image, place) for image in images])
        return 0, self.embed(pixels)

    def full(self, pixels: Tensor | Pixels, seed: Tensor | None = None) -> VisualTokens:
        """All N tokens (B, N, D) at the layer the projector reads."""
        seed = fingerprint(pixels) if seed is None else seed
        last = self.depth - 1
        state = self.states(pixels, {last, self.depth}, seed)
        return self._view(last, state[last], state[self.depth], self._all(len(pixels), pixels.device), seed)

    def schedule(self, pruner: Pruner) -> dict[int, int]:
        """What the method keeps after which blocks; nothing where the full budget makes it the identity."""
        if pruner.keeps(self.patches) == self.patches and not pruner.resizes_image:
            return {}
        return pruner.schedule(self.depth, self.patches)

    def places(self, pruner: Pruner) -> set[int]:
        """The places whose unpruned states the method starts from; none where it cuts its own patches."""
        if pruner.resizes_image:
            return set()
        first = min(self.schedule(pruner), default=self.depth - 1)
        whole = self.patches == self.side**2
        # a window's first block runs without the padding, and ToMe acts in its midst: neither has an unpruned output
        return {first, first + 1} if whole and not pruner.inside_block else {first}

    def knows(self, image: int, pruner: Pruner) -> bool:
        """Whether the cache has all that an answer with its shift metrics needs of the image of this fingerprint."""
        unpruned = set() if self.cache.has(image, "statistics") else {self.depth - 1, self.depth}
        places = self.places(pruner) | unpruned
        return not pruner.resizes_image and all(self.cache.has(image, place) for place in places)

    def survivors(self, pixels: Tensor | Pixels, pruner: Pruner, seed: Tensor | None = None) -> VisualTokens:
        """What the method's last step gets, (B, n, D): pruned inside the tower where the method has a schedule."""
        seed = fingerprint(pixels) if seed is None else seed
        schedule = self.schedule(pruner)
        if pruner.one_by_one and schedule and len(pixels) > 1:
            alone = [self.survivors(pixels[b : b + 1], pruner, seed[b : b + 1]) for b in range(len(pixels))]
            return concatenate([pruner.finish(tokens) for tokens in alone])  # counts agree only at the end
        if not schedule and not pruner.resizes_image:
            return self.full(pixels, seed)
        first, x, after, index = self._start(pixels, pruner, seed)
        size, carried, trace = None, {}, {}
        for layer in range(first, self.depth):
            before = x
            if layer == first and after is not None:
                x = after
            else:
                x = self.attend(layer, before, size) if pruner.inside_block else self.block(layer, before)
            if layer in schedule or layer == self.depth - 1:
                tokens = self._view(layer, before, x, index, seed, size=size, carried=carried, trace=trace)
            if layer in schedule:
                tokens = pruner.reduce_at(layer, tokens, schedule[layer])
                x = torch.cat([x[:, :1], tokens.hidden], 1)
                index, size, carried, trace = tokens.index, tokens.size, tokens.carried, tokens.trace
            if pruner.inside_block:
                x = self.feed(layer, x)
        tokens = replace(tokens, hidden=x[:, 1:], cls=x[:, 0])
        return self._with_projections(tokens)

    def _start(
        self, pixels: Tensor | Pixels, pruner: Pruner, seed: Tensor
    ) -> tuple[int, Tensor, Tensor | None, Tensor]:
        """First block to run, its input (B, 1 + n, D), its output where that is known, and patch numbers (B, n)."""
        places = self.places(pruner)
        if places:
            first, state = min(places), self.states(pixels, places, seed)
            return first, state[first], state.get(first + 1), self._all(len(pixels), pixels.device)
        patches, positions = pruner.patches(*self._cut(pixels), self.grid)
        cell = (positions * positions.new_tensor(self.grid)).long()  # the patch under each centre
        index = (cell[:, 0] * self.grid[1] + cell[:, 1]).expand(len(pixels), -1)
        return 0, self.embed_patches(patches, positions), None, index

    def _cut(self, pixels: Tensor | Pixels) -> tuple[Tensor, int]:
        """The window's pixels (B, 3, h, w) of whole crops, and the patch size."""
        patch = self.clip.config.patch_size
        rows, columns = (slice(s.start * patch, s.stop * patch) for s in (self.rows, self.columns))
        return read(pixels)[:, :, rows, columns], patch

    # --- features ---------------------------------------------------------------------------------------
    def _all(self, b: int, device: torch.device) -> Tensor:
        return torch.arange(self.patches, device=device).expand(b, -1)

    def _view(
        self, layer: int, before: Tensor, after: Tensor, index: Tensor, seed: Tensor, **state: object
    ) -> VisualTokens:
        """Tokens after block `layer` with input `before` and output `after`, each (B, 1 + n, D)."""
        attention = self.blocks[layer].self_attn
        normed: list[Tensor] = []  # layer norm of `before`, shared by the lazy features

        def norm() -> Tensor:
            if not normed:
                normed.append(self.blocks[layer].layer_norm1(before))
            return normed[0]

        features = {
            "cls_attention": lambda: cls_row(attention, norm())[:, :, 1:],
            "keys": lambda: attention.k_proj(norm())[:, 1:],
            "values": lambda: attention.v_proj(norm())[:, 1:],
            "cls_value": lambda: attention.v_proj(norm()[:, 0]),
        }
        if layer + 1 < len(self.blocks):
            following = self.blocks[layer + 1]
            features |= {
                "next_keys": lambda: following.self_attn.k_proj(following.layer_norm1(after[:, 1:])),
                "cls_next_key": lambda: following.self_attn.k_proj(following.layer_norm1(after[:, 0])),
                "cls_next_query": lambda: following.self_attn.q_proj(following.layer_norm1(after[:, 0])),
            }
        tokens = VisualTokens(
            after[:, 1:],
            index,
            self.grid,
            cls=after[:, 0],
            seed=seed,
            features=features,
            **state,  # type: ignore[arg-type]
        )
        return self._with_projections(tokens) if layer == self.depth - 1 else tokens

    def _with_projections(self, tokens: VisualTokens) -> VisualTokens:
        """Adds what the language model (`projected`) and CLIP's joint space (`clip`) make of the hidden states."""
        features = dict(tokens.features)
        features["projected"] = lambda: self.projector(tokens.hidden)
        if self.clip_projection is not None:
            features["clip"] = lambda: self.clip_projection(self.clip.post_layernorm(tokens.hidden))
        else:  # no CLIP text tower at hand: the language model's space stands in, on both sides (models/text.py)
            features["clip"] = features["projected"]
        return replace(tokens, features=features)


def cls_row(attention: nn.Module, normed: Tensor) -> Tensor:
    """CLS row of a block's attention in float32: layer-normed input (B, 1 + n, D) -> (B, H, 1 + n).

    softmax(q_cls K^T / sqrt(head size)); equal to eager attention's row without the (1 + n, 1 + n) map, and without
    the keys: q (W x + b) = (q W) x + q b, whose last term is the same for every token and leaves the softmax.
    """
    b, n, width = normed.shape
    heads, key = attention.num_heads, attention.k_proj
    q = attention.q_proj(normed[:, :1]).view(b, 1, heads, -1).transpose(1, 2)  # (B, H, 1, d)
    if type(key) is nn.Linear and key.weight.device == normed.device:
        weight = key.weight.float().view(heads, -1, width)  # (H, d, D)
        logits = (q.float() @ weight)[:, :, 0] @ normed.float().mT  # (B, H, 1 + n)
    else:  # quantised, adapted or offloaded: its weight is not all that it does, or not here
        logits = (q @ key(normed).view(b, n, heads, -1).permute(0, 2, 3, 1)).float()[:, :, 0]
    return (logits * (width // heads) ** -0.5).softmax(-1)
