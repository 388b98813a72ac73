"""LLaVA-NeXT's crops: which patches are padding, what a budget means for a crop, how kept tokens are packed.

An image becomes a base crop (the whole picture, squeezed to a square) and a grid of crops of the picture resized with
its aspect and padded. Hugging Face's packer drops the padding and ends each row of the grid with a newline token. It
is run once on numbers in place of features; the order of the numbers (`Frame.layout`) is all that is needed later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from models.images import fingerprint
from models.shape import crop_share
from models.vision_tower import VisionTower
from pruning.base import Pruner
from pruning.errors import one_of
from pruning.tokens import Question, VisualTokens

NEWLINE = -1


@dataclass(frozen=True)
class Frame:
    """How one image is cut and packed."""

    layout: Tensor  # (L,) the language model's order: crop * N + patch, or NEWLINE
    windows: tuple[tuple[slice, slice] | None, ...]  # rows and columns of each crop that show the picture

    @property
    def patches(self) -> Tensor:
        """(P,) the patches that show the picture, without newlines: crop * N + patch."""
        return self.layout[self.layout != NEWLINE]


@dataclass(frozen=True)
class Kept:
    """The tokens of one image (or of one question on it) that go to the projector, crop after crop."""

    hidden: Tensor  # (n, D)
    place: Tensor  # (n,) crop * N + patch; -1: no patch
    crop: Tensor  # (n,)
    frame: Frame
    newline: bool  # whether newline tokens are packed between them
    trace: dict[str, Tensor] = field(default_factory=dict)  # of the base crop


class Crops:
    """The crops of one LLaVA-NeXT model.

    Args:
        newline: `keep` or `drop` the newline tokens of a pruned image (peers differ); the full budget keeps them.
        unpad: exclude padding before anything is selected, so that it takes no budget.
    """

    def __init__(self, model: nn.Module, tower: VisionTower, newline: str = "drop", unpad: bool = True) -> None:
        one_of("newline", newline, ("keep", "drop"))
        self.model, self.tower, self.newline, self.unpad = model, tower, newline == "keep", unpad
        self.side = model.config.vision_config.image_size
        self.pinpoints: list[list[int]] = [list(p) for p in model.config.image_grid_pinpoints]
        self.most = 1 + max((h // self.side) * (w // self.side) for h, w in self.pinpoints)
        self._frames: dict[tuple[int, int, bool], Frame] = {}

    @property
    def total(self) -> int:
        """Visual tokens of the largest image without newlines: 2880 = 5 crops of 576."""
        return self.most * self.tower.patches

    # --- geometry ---------------------------------------------------------------------------------------
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of the padded grid that an image of `size` (height, width) is laid into."""
        from transformers.image_processing_utils import select_best_resolution

        return select_best_resolution(list(size), self.pinpoints)

    def number(self, size: tuple[int, int]) -> int:
        """Crops of an image of `size` (height, width), the base crop included."""
        height, width = self.grid(size)
        return 1 + (height // self.side) * (width // self.side)

    def frame(self, size: tuple[int, int], unpad: bool | None = None) -> Frame:
        """How an image of `size` (height, width) is cut and packed."""
        unpad = self.unpad if unpad is None else unpad
        key = (*size, unpad)
        if key not in self._frames:
            self._frames[key] = self._make_frame(size if unpad else self.grid(size), self.number(size))
        return self._frames[key]

    def _make_frame(self, size: tuple[int, int], crops: int) -> Frame:
        n, (rows, columns) = self.tower.patches, self.tower.grid
        numbers = torch.arange(crops * n, dtype=torch.float32).view(crops, n, 1)
        packed, _ = self.model.model.pack_image_features(
            [numbers], torch.tensor([size]), vision_feature_select_strategy="default", image_newline=-torch.ones(1)
        )
        layout = packed[0][:, 0].long()
        seen = torch.zeros(crops * n, dtype=torch.bool)
        seen[layout[layout != NEWLINE]] = True
        windows = [_rectangle(crop) for crop in seen.view(crops, rows, columns)]
        return Frame(layout, tuple(windows))

    # --- budget -----------------------------------------------------------------------------------------
    def share(self, pruner: Pruner) -> Pruner | None:
        """The method with one crop's budget; None where it keeps everything.

        Raises:
            InputError: budget out of range, or not divisible over the crops.
        """
        keep = pruner.keeps(self.total)
        if keep == self.total:
            return None
        return replace(pruner, budget=max(1, crop_share(keep, self.most)))

    def count(self, size: tuple[int, int], pruner: Pruner) -> int:
        """Tokens of an image of `size` that reach the language model, newlines included."""
        share = self.share(pruner)
        if share is None:
            return len(self.frame(size, unpad=True).layout)
        frame = self.frame(size)
        kept = sum(_fit(share, *window).keeps(_area(*window)) for window in frame.windows if window is not None)
        return kept + (int((frame.layout == NEWLINE).sum()) if self.newline else 0)

    # --- tokens -----------------------------------------------------------------------------------------
    @torch.no_grad()
    def prune(
        self,
        crops: list[Tensor],
        sizes: list[tuple[int, int]],
        pruner: Pruner,
        asked: list[int] | None = None,
        question: Question | None = None,
        stage: Callable[[str], AbstractContextManager[None]] = nullcontext,
    ) -> list[Kept]:
        """Prunes each crop to its share.

        Args:
            crops: pixels of each image's crops, (C_i, 3, H, W).
            sizes: (height, width) of each image before any processing.
            asked: how many questions each image gets, where the method reads the question.
            question: all those questions, in order.
            stage: times what is done within `with stage(name)`.

        Returns:
            One entry an image; one a question where the method reads the question.
        """
        share = self.share(pruner)
        if share is None:
            with stage("tower"):
                return self._everything(crops, sizes, asked)
        frames = [self.frame(size) for size in sizes]
        groups: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
        for image, frame in enumerate(frames):
            for crop, window in enumerate(frame.windows):
                if window is not None:
                    rows, columns = window
                    groups.setdefault((rows.start, rows.stop, columns.start, columns.stop), []).append((image, crop))
        ends = torch.tensor(asked or [1] * len(crops)).cumsum(0).tolist()
        rows_of = [range(end - n, end) for end, n in zip(ends, asked or [1] * len(crops))]
        parts: list[dict[int, tuple[VisualTokens, int]]] = [{} for _ in range(ends[-1])]
        for (top, bottom, left, right), members in groups.items():
            window = slice(top, bottom), slice(left, right)
            method = _fit(share, *window)
            with stage("tower"):
                pixels = torch.stack([crops[image][crop] for image, crop in members])
                tokens = self.tower.window(*window).survivors(pixels, method, fingerprint(pixels))
            where = [(row, at, crop) for at, (image, crop) in enumerate(members) for row in rows_of[image]]
            with stage("selection"):
                tokens = tokens.rows(torch.tensor([at for _, at, _ in where], device=pixels.device))
                rows = torch.tensor([row for row, _, _ in where], device=pixels.device)
                tokens = method.finish(tokens, None if question is None else question.rows(rows))
            for at, (row, _, crop) in enumerate(where):
                parts[row][crop] = (tokens, at)
        image_of = [image for image, rows in enumerate(rows_of) for _ in rows]
        return [self._join(own, frames[image]) for own, image in zip(parts, image_of)]

    def _join(self, parts: dict[int, tuple[VisualTokens, int]], frame: Frame) -> Kept:
        """The tokens of one row's crops, numbered over the whole image."""
        n, columns = self.tower.patches, self.tower.grid[1]
        hidden, place, crop = [], [], []
        for number, (tokens, at) in sorted(parts.items()):
            index, (rows, across) = tokens.index[at], frame.windows[number]  # type: ignore[misc]
            patch = (index // tokens.grid[1] + rows.start) * columns + index % tokens.grid[1] + across.start
            hidden.append(tokens.hidden[at])
            place.append(torch.where(index < 0, -1, number * n + patch))
            crop.append(torch.full_like(index, number))
        first, at = parts[0]
        trace = {name: x[at] for name, x in first.trace.items()}
        return Kept(torch.cat(hidden), torch.cat(place), torch.cat(crop), frame, self.newline, trace)

    def _everything(self, crops: list[Tensor], sizes: list[tuple[int, int]], asked: list[int] | None) -> list[Kept]:
        """Unpruned: one pass over all crops, the standard packing."""
        n, lengths = self.tower.patches, [len(own) for own in crops]
        whole = self.tower.full(torch.cat(crops)).hidden.split(lengths)  # (C_i, N, D) each
        kept = []
        for image, (hidden, size) in enumerate(zip(whole, sizes)):
            place = torch.arange(len(hidden) * n, device=hidden.device)
            row = Kept(hidden.flatten(0, 1), place, place // n, self.frame(size, unpad=True), True)
            kept += [row] * (1 if asked is None else asked[image])
        return kept

    def full(self, crops: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Each image's tokens before selection (padding excluded as the switch says): (P_i, D)."""
        whole = self.tower.full(torch.cat(crops)).hidden.split([len(own) for own in crops])
        return [h.flatten(0, 1)[self.frame(size).patches.to(h.device)] for h, size in zip(whole, sizes)]

    def project(self, kept: list[Kept]) -> list[Tensor]:
        """Features of each row as the language model reads them, (K_i, D_llm)."""
        lengths = [len(row.hidden) for row in kept]
        newline = self.model.model.image_newline
        projected = self.tower.projector(torch.cat([row.hidden for row in kept])).split(lengths)
        packed = []
        for row, features in zip(kept, projected):
            order = self.order(row)
            packed.append(torch.cat([features, newline.to(features)[None]])[order])
        return packed

    def order(self, row: Kept) -> Tensor:
        """(K_i,) slots of the row's tokens in the layout's order, -1 for a newline; a token without patch opens
        its crop, padding is left out.
        """
        layout, device, n = row.frame.layout.to(row.hidden.device), row.hidden.device, self.tower.patches
        real = layout != NEWLINE
        at = real.nonzero()[:, 0]
        seat = torch.full((len(row.frame.windows) * n,), -1, device=device)  # place -> position in the layout
        seat[layout[real]] = at
        opening = torch.full((len(row.frame.windows),), len(layout), device=device)
        opening.scatter_reduce_(0, layout[real] // n, at, "amin")
        key = torch.where(row.place < 0, opening[row.crop] - 0.5, seat[row.place.clamp(min=0)].double())
        shown = (key > -1).nonzero()[:, 0]
        lines = (~real).nonzero()[:, 0] if row.newline else at[:0]
        slots = torch.cat([shown, torch.full_like(lines, -1)])
        return slots[torch.cat([key[shown], lines.double()]).argsort(stable=True)]

    def index(self, row: Kept) -> Tensor:
        """(K_i,) crop * N + patch of the tokens in that order; -1 for newlines and tokens without patch."""
        order = self.order(row)
        return torch.where(order < 0, -1, row.place[order])


def _rectangle(seen: Tensor) -> tuple[slice, slice] | None:
    """The rectangle of True in (rows, columns); None where there is none."""
    if not bool(seen.any()):
        return None
    rows, columns = seen.any(1).nonzero()[:, 0].tolist(), seen.any(0).nonzero()[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _area(rows: slice, columns: slice) -> int:
    """Patches of a window."""
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def _fit(share: Pruner, rows: slice, columns: slice) -> Pruner:
    """The method with a crop's budget, or less where fewer patches show the picture."""
    return replace(share, budget=min(share.budget, _area(rows, columns)))
