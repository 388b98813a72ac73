"""What every patch of an image belongs to, as arrays."""

import numpy as np

from .vocabulary import COLOR_NAMES, GROUND, NO_COLOR, SHAPES, SIGN
from .world import PATCH, centre

NO_DIGIT, NOT_SIGN = 10, 11  # digit classes after 0..9: a place left empty, a patch that is no sign


def patch_labels(objects: list[dict], px: int) -> dict[str, np.ndarray]:
    """Labels on the (g, g) grid, flattened to (N,). A patch belongs to the object whose box holds the patch's centre.

    shape (N,), color (N,), heart (N,): patch holds the object's centre; mass (N,): heart made smooth, shared by the four
    patches around the centre, sum 1 an object; digits (N, 3): the whole number; near (N,): the digit nearest to the patch;
    middle (N, 2): centre of the patch's object, or of the patch itself on ground, x and y in px.
    """
    g = px // PATCH
    xy = (np.arange(g) * PATCH + PATCH / 2).astype(np.float32)
    shape, color = np.full((g, g), GROUND), np.full((g, g), NO_COLOR)
    heart, mass = np.zeros((g, g), np.int64), np.zeros((g, g), np.float32)
    digits, near = np.full((g, g, 3), NOT_SIGN), np.zeros((g, g), np.int64)
    middle = np.stack(np.meshgrid(xy, xy), -1)
    for o in objects:
        x0, y0, x1, y1 = o["box"]
        cx, cy = centre(o)
        cols, rows = np.where((xy >= x0) & (xy < x1))[0], np.where((xy >= y0) & (xy < y1))[0]
        block = np.s_[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]
        middle[block] = cx, cy
        heart[min(int(cy // PATCH), g - 1), min(int(cx // PATCH), g - 1)] = 1
        u, v = cx / PATCH - 0.5, cy / PATCH - 0.5
        for r, wr in ((int(v), 1 - v % 1), (int(v) + 1, v % 1)):
            for c, wc in ((int(u), 1 - u % 1), (int(u) + 1, u % 1)):
                if r < g and c < g:
                    mass[r, c] += wr * wc
        if o["shape"] == "sign":
            number = [int(c) for c in o["digits"]]
            shape[block] = SIGN
            digits[block] = number + [NO_DIGIT] * (3 - len(number))
            place = ((xy[cols] - x0 - 5) / (x1 - x0 - 10) * len(number)).astype(int).clip(0, len(number) - 1)
            near[block] = np.array(number)[place][None]
        else:
            shape[block], color[block] = SHAPES.index(o["shape"]), COLOR_NAMES.index(o["color"])
    mass[shape == GROUND] = 0
    return {"shape": shape.reshape(-1), "color": color.reshape(-1), "heart": heart.reshape(-1), "mass": mass.reshape(-1),
            "digits": digits.reshape(-1, 3), "near": near.reshape(-1), "middle": middle.reshape(-1, 2)}


def pair_labels(objects: list[dict]) -> np.ndarray:
    """Which (shape, colour) pairs, and whether a sign, are in the image: float32 (97,), what CLS has to know."""
    out = np.zeros(len(SHAPES) * len(COLOR_NAMES) + 1, np.float32)
    for o in objects:
        sign = o["shape"] == "sign"
        out[-1 if sign else SHAPES.index(o["shape"]) * len(COLOR_NAMES) + COLOR_NAMES.index(o["color"])] = 1
    return out
