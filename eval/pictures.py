"""What a method kept, drawn on an image: how to draw; model-free, from a record's `index` and a method's trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, MUTED = (25, 25, 30), (255, 255, 255), (110, 110, 118)
KEPT = (255, 255, 255)
HUES = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0), (0, 114, 178))
RIGHT, WRONG = (0, 114, 80), (190, 70, 0)
SIDE, GAP, FINE = 480, 24, 2  # px of a panel, between panels; oversampling of lines


def draw_kept_tokens(
    image: Image.Image,
    grid: tuple[int, int],
    index: Sequence[int],
    question: str,
    answer_pruned: str,
    answer_full: str | None,
    target: str,
    title: str,
    trace: Mapping[str, Any] | None,
    path: str | Path,
) -> None:
    """One sample as a PNG: the image, the kept patches, and, from a trace, the recovery and the clusters.

    Args:
        image: as the tower saw it, so that the patch grid covers it.
        grid: rows, columns; N = rows * columns patches in raster order.
        index: kept patches; numbers outside 0..N-1 (a token without a patch, another crop) are only counted.
        trace: (N,) integers by name, each optional: `recovered_into` (the anchor that took this patch's context in,
            -1: none), `removed_at` (layer after which it left, -1: stayed), `cluster` (its representative, -1: none).
    """
    facts = {name: np.asarray(values).reshape(-1) for name, values in (trace or {}).items()}
    kept = [int(i) for i in index if 0 <= int(i) < grid[0] * grid[1]]
    elsewhere = len(index) - len(kept)
    note = f"{len(index)} kept tokens" + (f", {elsewhere} of them not on this grid" if elsewhere else "")
    panels = [(fit(image, grid), "image"), (kept_panel(image, grid, kept), note)]
    if (facts.get("recovered_into", np.array([-1])) >= 0).any():
        panels.append((recovery_panel(image, grid, kept, facts), "removed contexts, and the anchors they flow into"))
    if (facts.get("cluster", np.array([-1])) >= 0).any():
        count = len(np.unique(facts["cluster"][facts["cluster"] >= 0]))
        panels.append((cluster_panel(image, grid, facts["cluster"]), f"{count} clusters, representatives outlined"))
    legend = layer_legend(facts)
    answers = [("expected", target, INK), ("pruned", *judged(answer_pruned, target))]
    if answer_full is not None:
        answers.append(("all tokens", *judged(answer_full, target)))
    sheet = compose(panels, title, question, answers, legend)
    sheet.save(path)


def method_sheet(
    image: Image.Image,
    kept: Mapping[str, Sequence[int]],
    path: str | Path,
    grid: tuple[int, int] = (24, 24),
    title: str = "",
    columns: int = 6,
) -> None:
    """Kept tokens of many methods on one image: a PNG with one tile a method, in the mapping's order."""
    side, gap, line = 300, 16, 26
    tiles = [("image", fit(image, grid))] + [
        (
            f"{name}  ({len(index)})",
            kept_panel(image, grid, [int(i) for i in index if 0 <= int(i) < grid[0] * grid[1]]),
        )
        for name, index in kept.items()
    ]
    columns = min(columns, len(tiles))
    rows, top = -(-len(tiles) // columns), 52 if title else gap
    sheet = Image.new("RGB", (gap + columns * (side + gap), top + rows * (side + line + gap)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, 14), title, INK, font(22, bold=True))
    for i, (name, tile) in enumerate(tiles):
        x, y = gap + i % columns * (side + gap), top + i // columns * (side + line + gap)
        height = round(side * grid[0] / grid[1]) if grid[0] < grid[1] else side
        sheet.paste(tile.resize((round(height * grid[1] / grid[0]), height), Image.LANCZOS), (x, y + line))
        pen.text((x, y + 2), name, INK, font(17, bold=i > 0))
    sheet.save(path)


def kept_panel(image: Image.Image, grid: tuple[int, int], kept: Sequence[int]) -> Image.Image:
    """Kept patches bright and outlined, the rest dark and grey."""
    clear, mask = np.asarray(fit(image, grid)), cells(grid, kept)
    panel = Image.fromarray(np.where(stretch(mask, grid)[..., None], clear, dimmed(clear)).astype(np.uint8))
    return outlined(panel, grid, mask.astype(int), KEPT, 2)


def recovery_panel(
    image: Image.Image, grid: tuple[int, int], kept: Sequence[int], facts: Mapping[str, np.ndarray]
) -> Image.Image:
    """Each removed context as a mark in its layer's colour and shape, with a line to its anchor; anchors outlined."""
    into = facts["recovered_into"]
    stayed = np.setdiff1d(into, np.flatnonzero(into >= 0))  # an anchor of an early layer may be a context later
    clear, mask = np.asarray(fit(image, grid)), cells(grid, kept)
    panel = Image.fromarray(np.where(stretch(mask, grid)[..., None], clear, dimmed(clear)).astype(np.uint8))
    layers = list_layers(facts)
    ink = Image.new("RGBA", [s * FINE for s in panel.size])
    pen = ImageDraw.Draw(ink)
    size = SIDE * FINE / max(grid)
    for c in np.flatnonzero(into >= 0):
        hue = HUES[layers.index(layer_of(facts, c)) % len(HUES)]
        pen.line([centre(c, grid, size), centre(into[c], grid, size)], (*hue, 190), FINE)
    for c in np.flatnonzero(into >= 0):
        order = layers.index(layer_of(facts, c))
        mark(pen, centre(c, grid, size), size * 0.13, order, (*HUES[order % len(HUES)], 235))
    for a in stayed[stayed >= 0]:
        x, y = centre(a, grid, size)
        r = size * 0.5
        pen.rectangle((x - r, y - r, x + r, y + r), outline=(*KEPT, 255), width=FINE)
    panel.paste(ink.resize(panel.size, Image.LANCZOS), (0, 0), ink.resize(panel.size, Image.LANCZOS))
    return outlined(panel, grid, mask.astype(int), KEPT, 3)


def cluster_panel(image: Image.Image, grid: tuple[int, int], cluster: np.ndarray) -> Image.Image:
    """Members tinted in their cluster's colour with a line to the representative, which is clear and outlined."""
    clear = np.asarray(fit(image, grid)).astype(float)
    names = np.unique(cluster[cluster >= 0])
    hue = np.zeros((len(cluster), 3))
    for i, name in enumerate(names):
        hue[cluster == name] = HUES[i % len(HUES)]
    big = stretch(hue.reshape(*grid, 3), grid)
    member = stretch(cells(grid, np.flatnonzero(cluster >= 0)), grid)[..., None]
    chosen = stretch(cells(grid, names), grid)[..., None]
    tinted = np.where(chosen, clear, np.where(member, clear * 0.45 + big * 0.55, dimmed(clear)))
    panel = Image.fromarray(tinted.astype(np.uint8))
    ink = Image.new("RGBA", [s * FINE for s in panel.size])
    pen = ImageDraw.Draw(ink)
    size = SIDE * FINE / max(grid)
    for c in np.flatnonzero((cluster >= 0) & (cluster != np.arange(len(cluster)))):
        colour = tuple(int(v) for v in hue[c])
        pen.line([centre(c, grid, size), centre(cluster[c], grid, size)], (*colour, 200), FINE)
    panel.paste(ink.resize(panel.size, Image.LANCZOS), (0, 0), ink.resize(panel.size, Image.LANCZOS))
    return outlined(panel, grid, np.where(cells(grid, names), 1, 0), KEPT, 3)


def compose(
    panels: list[tuple[Image.Image, str]],
    title: str,
    question: str,
    answers: list[tuple[str, str, tuple[int, int, int]]],
    legend: list[tuple[int, str]],
) -> Image.Image:
    """Title, question, panels with captions, legend and answers on white."""
    width = GAP + sum(panel.width + GAP for panel, _ in panels)
    lines = wrap(f"Q: {question}", font(24), width - 2 * GAP)
    top = 62 + 32 * len(lines) + 12
    below = top + panels[0][0].height + 34
    sheet = Image.new("RGB", (width, below + (30 if legend else 0) + 58), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 18), title, INK, font(26, bold=True))
    for i, line in enumerate(lines):
        pen.text((GAP, 62 + 32 * i), line, INK, font(24))
    x = GAP
    for panel, caption in panels:
        sheet.paste(panel, (x, top))
        pen.text((x, top + panel.height + 6), caption, MUTED, font(17))
        x += panel.width + GAP
    x = GAP + 2 * (panels[0][0].width + GAP)
    for order, words in legend:
        pen.rectangle((x, below + 2, x + 22, below + 24), (50, 50, 55))
        mark(pen, (x + 11, below + 13), 6, order, HUES[order % len(HUES)])
        pen.text((x + 30, below + 3), words, INK, font(16))
        x += 50 + font(16).getlength(words)
    x, y = GAP, below + (30 if legend else 0) + 10
    for name, words, colour in answers:
        pen.text((x, y), f"{name}: ", MUTED, font(24))
        x += font(24).getlength(f"{name}: ")
        words = shorten(words, font(24, bold=True), (width - 2 * GAP) / len(answers) - 140)
        pen.text((x, y), words, colour, font(24, bold=True))
        x += font(24, bold=True).getlength(words) + 40
    return sheet


def judged(answer: str, target: str) -> tuple[str, tuple[int, int, int]]:
    """The answer with a word for right or wrong, and its colour; loosely compared, only for the eye."""
    same = answer.strip().lower().rstrip(".") == str(target).strip().lower().rstrip(".")
    return f"{answer.strip() or '(nothing)'} ({'right' if same else 'wrong'})", RIGHT if same else WRONG


def layer_legend(facts: Mapping[str, np.ndarray]) -> list[tuple[int, str]]:
    """(mark, words) of each layer at which contexts left."""
    if "recovered_into" not in facts or "removed_at" not in facts:
        return []
    flowing = facts["recovered_into"] >= 0
    return [
        (i, f"left after layer {layer}: {int((flowing & (facts['removed_at'] == layer)).sum())}")
        for i, layer in enumerate(list_layers(facts))
    ]


def list_layers(facts: Mapping[str, np.ndarray]) -> list[int]:
    """Layers at which a recovered context left, sorted; [-1] where the trace does not say."""
    return sorted({layer_of(facts, c) for c in np.flatnonzero(facts["recovered_into"] >= 0)})


def layer_of(facts: Mapping[str, np.ndarray], patch: int) -> int:
    """Layer after which the patch left, -1 if unknown."""
    return int(facts["removed_at"][patch]) if "removed_at" in facts else -1


def mark(pen: ImageDraw.ImageDraw, at: tuple[float, float], r: float, order: int, colour: tuple[int, ...]) -> None:
    """A small filled circle, square, triangle or diamond: the shape tells the layers apart without colour."""
    x, y = at
    if order % 4 == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), colour)
    elif order % 4 == 1:
        pen.rectangle((x - r, y - r, x + r, y + r), colour)
    elif order % 4 == 2:
        pen.polygon([(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)], colour)
    else:
        pen.polygon([(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)], colour)


def outlined(
    panel: Image.Image, grid: tuple[int, int], group: np.ndarray, colour: tuple[int, int, int], width: int
) -> Image.Image:
    """A line wherever a cell with group > 0 meets a cell of another group, (rows, columns) int."""
    pen, size = ImageDraw.Draw(panel), SIDE / max(grid)
    padded = np.pad(group, 1)
    for r, c in np.argwhere(group > 0):
        x0, y0, x1, y1 = round(c * size), round(r * size), round((c + 1) * size) - 1, round((r + 1) * size) - 1
        edges = (((r, c + 1), (x0, y0, x1, y0)), ((r + 2, c + 1), (x0, y1, x1, y1)),
                 ((r + 1, c), (x0, y0, x0, y1)), ((r + 1, c + 2), (x1, y0, x1, y1)))  # fmt: skip
        for neighbour, line in edges:
            if padded[neighbour] != group[r, c]:
                pen.line(line, colour, width)
    return panel


def dimmed(clear: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) dark and nearly grey, what they show still to be recognised."""
    clear = clear.astype(float)
    return (clear.mean(2, keepdims=True) * 0.6 + clear * 0.4) * 0.42


def fit(image: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """The image in RGB at the size of a panel, whole patches."""
    size = SIDE / max(grid)
    return image.convert("RGB").resize((round(grid[1] * size), round(grid[0] * size)), Image.LANCZOS)


def cells(grid: tuple[int, int], index: Sequence[int] | np.ndarray) -> np.ndarray:
    """(rows, columns) bool, true at the patches of `index`."""
    out = np.zeros(grid[0] * grid[1], bool)
    out[np.asarray(index, int)] = True
    return out.reshape(grid)


def stretch(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns, ...) to the pixels of a panel."""
    size = SIDE / max(grid)
    rows = np.minimum((np.arange(round(grid[0] * size)) / size).astype(int), grid[0] - 1)
    columns = np.minimum((np.arange(round(grid[1] * size)) / size).astype(int), grid[1] - 1)
    return values[rows][:, columns]


def centre(patch: int, grid: tuple[int, int], size: float) -> tuple[float, float]:
    """Middle of a patch, x and y, for cells of `size`."""
    return (patch % grid[1] + 0.5) * size, (patch // grid[1] + 0.5) * size


def wrap(words: str, face: ImageFont.FreeTypeFont, width: float, most: int = 3) -> list[str]:
    """Lines no wider than `width`, at most `most`; the last is shortened where more would be needed."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [shorten(line, face, width) for line in lines]


def shorten(words: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """The words, cut with an ellipsis where they are wider than `width`."""
    if face.getlength(words) <= width:
        return words
    while words and face.getlength(words + "…") > width:
        words = words[:-1]
    return words + "…"


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
