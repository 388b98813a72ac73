"""Scenes: small coloured shapes and number plates over a textured ground. Everything in a scene is known."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .vocabulary import COLOR_NAMES, COLORS, SHAPES

PATCH, GRID = 14, 24
PX = PATCH * GRID  # side of a full image
CELLS = ((4, 0.5), (16, 0.3), (64, 0.3), (170, 0.25))  # octaves of the ground textures: cells, amplitude


def _star(k: int) -> tuple[float, float]:
    radius, start = (0.525, -90) if k % 2 == 0 else (0.21, -54)
    a = np.radians(start + 72 * (k // 2))
    return 0.5 + radius * np.cos(a), 0.5 + radius * np.sin(a)


def _hexagon(k: int) -> tuple[float, float]:
    a = np.radians(60 * k)
    return 0.5 + 0.5 * np.cos(a), 0.5 + 0.5 * np.sin(a)


POLYGONS = {  # corners in the unit square
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.02), (0.99, 0.95), (0.01, 0.95)],
    "star": [_star(k) for k in range(10)],
    "cross": [(0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66), (0.66, 1), (0.34, 1),
              (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34)],
    "diamond": [(0.5, 0), (0.88, 0.5), (0.5, 1), (0.12, 0.5)],
    "arrow": [(0, 0.36), (0.5, 0.36), (0.5, 0.06), (1, 0.5), (0.5, 0.94), (0.5, 0.64), (0, 0.64)],
    "hexagon": [_hexagon(k) for k in range(6)],
    "house": [(0.5, 0), (1, 0.45), (0.86, 0.45), (0.86, 1), (0.6, 1), (0.6, 0.65), (0.4, 0.65), (0.4, 1), (0.14, 1),
              (0.14, 0.45), (0, 0.45)],
}


def draw_mask(shape: str, size: int) -> np.ndarray:
    """Antialiased alpha of a shape, float32 (size, size)."""
    n = size * 4
    im = Image.new("L", (n, n), 0)
    d = ImageDraw.Draw(im)
    if shape in POLYGONS:
        d.polygon([(x * n, y * n) for x, y in POLYGONS[shape]], fill=255)
    elif shape == "heart":
        d.ellipse((0, 0.04 * n, 0.52 * n, 0.56 * n), fill=255)
        d.ellipse((0.48 * n, 0.04 * n, n - 1, 0.56 * n), fill=255)
        d.polygon([(0.035 * n, 0.42 * n), (0.965 * n, 0.42 * n), (0.5 * n, 0.98 * n)], fill=255)
    else:
        d.ellipse((0, 0, n - 1, n - 1), fill=255)
        if shape == "ring":
            d.ellipse((0.27 * n, 0.27 * n, 0.73 * n, 0.73 * n), fill=0)
        if shape == "moon":
            d.ellipse((0.36 * n, -0.08 * n, 1.2 * n, 0.86 * n), fill=0)
    return np.asarray(im.resize((size, size), Image.BOX), np.float32) / 255


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG bytes without chroma subsampling."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def centre(o: dict) -> tuple[float, float]:
    """Centre of an object's box, x and y in px."""
    x0, y0, x1, y1 = o["box"]
    return (x0 + x1) / 2, (y0 + y1) / 2


def shifted(objects: list[dict], dx: int, dy: int) -> list[dict]:
    """The same objects with their boxes moved: from a crop's coordinates to the full image's."""
    return [{**o, "box": (o["box"][0] + dx, o["box"][1] + dy, o["box"][2] + dx, o["box"][3] + dy)} for o in objects]


def _apart(box: tuple[int, int, int, int], objects: list[dict], gap: int = 3) -> bool:
    x0, y0, x1, y1 = box
    return all(x0 >= b[2] + gap or x1 + gap <= b[0] or y0 >= b[3] + gap or y1 + gap <= b[1]
               for b in (o["box"] for o in objects))


class World:
    """Endless scenes from one seed. An object is a dict of shape, color (None for a sign), box and, for a sign, digits."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self._masks, self._plates = {}, {}
        g = np.random.default_rng(12345)  # the 24 textures are the same in every world
        self._grounds = []
        for _ in range(24):
            z = np.zeros((512, 512), np.float32)
            for cells, amp in CELLS:
                n = (g.standard_normal((cells, cells)) * 60 + 128).clip(0, 255).astype(np.uint8)
                z += amp * (np.asarray(Image.fromarray(n).resize((512, 512), Image.BICUBIC), np.float32) - 128) / 80
            self._grounds.append(z)

    def layout(self, px: int = PX, n_objects: tuple[int, int] = (4, 9), p_sign: float = 1.0, n_signs: int = 1) -> list[dict]:
        """Objects only, no pixels. Each of n_signs signs is there with probability p_sign."""
        r = self.rng
        n = int(r.integers(n_objects[0], n_objects[1] + 1))
        shapes = r.choice(len(SHAPES), min(len(SHAPES), int(r.integers(2, max(3, n) + 1))), replace=False)
        colors = r.choice(len(COLOR_NAMES), min(len(COLOR_NAMES), int(r.integers(2, max(3, n) + 1))), replace=False)
        objects = []
        for _ in range(n_signs):
            if r.random() >= p_sign:
                continue
            digits = "".join(map(str, [r.integers(1, 10), *r.integers(0, 10, r.integers(1, 3))]))
            height = int(r.integers(21, 29))
            h, w = self._plate(digits, height).shape
            x, y = int(r.integers(0, px - w + 1)), int(r.integers(0, px - h + 1))
            if _apart((x, y, x + w, y + h), objects):
                objects.append({"shape": "sign", "color": None, "box": (x, y, x + w, y + h), "digits": digits, "height": height})
        for _ in range(n):
            for _ in range(12):
                s = int(r.integers(28, 71))
                x, y = int(r.integers(0, px - s + 1)), int(r.integers(0, px - s + 1))
                if _apart((x, y, x + s, y + s), objects):
                    objects.append({"shape": SHAPES[shapes[r.integers(len(shapes))]],
                                    "color": COLOR_NAMES[colors[r.integers(len(colors))]], "box": (x, y, x + s, y + s)})
                    break
        return objects

    def render(self, objects: list[dict], px: int = PX, p_jpeg: float = 0.0) -> np.ndarray:
        """Image of the objects, uint8 (px, px, 3); with probability p_jpeg through JPEG of quality 75 to 97."""
        r = self.rng
        image = self._ground(px)
        for o in objects:
            x0, y0, x1, y1 = o["box"]
            part = image[y0:y1, x0:x1]
            if o["shape"] == "sign":
                part[:] = self._plate(o["digits"], o["height"])[..., None] * 0.94 + r.normal(0, 4)
                continue
            key = (o["shape"], x1 - x0)
            if key not in self._masks:
                self._masks[key] = draw_mask(*key)
            a = self._masks[key][..., None]
            part *= 1 - a
            part += a * (np.asarray(COLORS[o["color"]], np.float32) + r.normal(0, 9, 3) + r.normal(0, 8))
        image += r.standard_normal((px, px, 1), np.float32) * 4
        image = image.clip(0, 255).astype(np.uint8)
        if p_jpeg and r.random() < p_jpeg:
            image = np.asarray(Image.open(io.BytesIO(jpeg(image, int(r.integers(75, 98))))))
        return image

    def _ground(self, px: int) -> np.ndarray:
        r = self.rng
        z = self._grounds[r.integers(len(self._grounds))]
        x, y = r.integers(0, 512 - px + 1, 2)
        z = z[y:y + px, x:x + px]
        if r.random() < 0.5:
            z = z[:, ::-1]
        grey = r.uniform(70, 190)
        contrast = r.uniform(20, 50) + r.normal(0, 6, 3)
        return (grey + r.normal(0, 14, 3) + z[..., None] * contrast).astype(np.float32)

    def _plate(self, digits: str, height: int) -> np.ndarray:
        """Black digits on white with a thin frame, float32 (h, w)."""
        key = (digits, height)
        if key not in self._plates:
            font = ImageFont.load_default(size=height)
            x0, y0, x1, y1 = font.getbbox(digits, stroke_width=0.6)
            im = Image.new("L", (int(x1 - x0) + 10, int(y1 - y0) + 10), 255)
            d = ImageDraw.Draw(im)
            d.text((5 - x0, 5 - y0), digits, fill=0, font=font, stroke_width=0.6)
            d.rectangle((0, 0, im.width - 1, im.height - 1), outline=0)
            if len(self._plates) > 4000:
                self._plates.clear()
            self._plates[key] = np.asarray(im, np.float32)
        return self._plates[key]
