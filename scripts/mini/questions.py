"""Questions about a scene, as a user would type them, with the exact text that generate gives for a right answer.

Every maker takes (rng, objects) and gives (question, answer) or None where the scene does not allow it. Scenes are in
full-image coordinates. Wrong statements differ from right ones only in what the picture shows: words of both are drawn
alike, so that the text alone does not tell them apart.
"""

from collections.abc import Callable

import numpy as np

from .vocabulary import COLOR_NAMES, LETTERS, SHAPES
from .world import PX, centre

Pair = tuple[str, str]
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATION_GAP, HALF_GAP, CORNER_GAP = 36, 16, 30  # px that make a place unambiguous


def pick(rng: np.random.Generator, items: list):
    """One of items, or None of an empty list."""
    return items[rng.integers(len(items))] if items else None


def things_of(objects: list[dict]) -> list[dict]:
    """Objects that are not signs."""
    return [o for o in objects if o["shape"] != "sign"]


def pairs_of(objects: list[dict]) -> list[Pair]:
    """(color, shape) of every thing."""
    return [(o["color"], o["shape"]) for o in things_of(objects)]


def unique(objects: list[dict], *keys: str) -> list[dict]:
    """Things which alone have their value of keys."""
    things = things_of(objects)
    values = [tuple(o[k] for k in keys) for o in things]
    return [o for o, v in zip(things, values, strict=True) if values.count(v) == 1]


def crossed(objects: list[dict]) -> list[Pair]:
    """Adversarial pairs: colour and shape both occur in the scene, but not together."""
    pairs = set(pairs_of(objects))
    colors, shapes = ({p[i] for p in pairs} for i in (0, 1))
    return sorted((c, s) for c in colors for s in shapes if (c, s) not in pairs)


def absent(rng: np.random.Generator, objects: list[dict], adversarial: bool) -> Pair:
    """A pair that the scene does not hold."""
    if adversarial and (p := pick(rng, crossed(objects))):
        return p
    pairs = set(pairs_of(objects))
    while True:
        p = pick(rng, COLOR_NAMES), pick(rng, SHAPES)
        if p not in pairs:
            return p


def relation_word(rng: np.random.Generator, a: dict, b: dict) -> str | None:
    """A true relation of a to b along a random axis, None where the two are too close along it."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    d, words = pick(rng, [(bx - ax, ("left of", "right of")), (by - ay, ("above", "below"))])
    return None if abs(d) < RELATION_GAP else words[d < 0]


def place_of(o: dict) -> str | None:
    """Quarter of the image, None near a border between quarters."""
    x, y = centre(o)
    if min(abs(x - PX / 2), abs(y - PX / 2)) < HALF_GAP:
        return None
    return f"{'top' if y < PX / 2 else 'bottom'} {'left' if x < PX / 2 else 'right'}"


def ask_exist(pair: Pair) -> str:
    return f"Is there {'an' if pair[0] == 'orange' else 'a'} {pair[0]} {pair[1]} in the image?"


def ask_relation(a: dict, word: str, b: dict) -> str:
    return f"Is the {a['color']} {a['shape']} {word} the {b['color']} {b['shape']}?"


def with_options(rng: np.random.Generator, ask: str, right: str, wrong: list[str], letter: int | None = None) -> Pair:
    """Multiple choice: the question with its options, one a line, and the letter of the right one."""
    k = int(rng.integers(3)) if letter is None else letter
    options = wrong[:k] + [right] + wrong[k:]
    return ask + "".join(f"\n{x}. {o}" for x, o in zip(LETTERS, options, strict=True)), LETTERS[k]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def exist(rng, objects):
    o, right = pick(rng, pairs_of(objects)), rng.random() < 0.5
    return o and (ask_exist(o if right else absent(rng, objects, rng.random() < 0.6)), _yes(right))


def color(rng, objects):
    o = pick(rng, unique(objects, "shape"))
    return o and (f"What color is the {o['shape']}?", o["color"])


def shape(rng, objects):
    o = pick(rng, unique(objects, "color"))
    return o and (f"What shape is the {o['color']} object?", o["shape"])


def where(rng, objects):
    o = pick(rng, unique(objects, "color", "shape"))
    return o and place_of(o) and (f"Where is the {o['color']} {o['shape']}?", place_of(o))


def position(rng, objects):
    things = things_of(objects)
    if len(things) < 2:
        return None
    v, h = pick(rng, [("top", 0), ("bottom", PX)]), pick(rng, [("left", 0), ("right", PX)])
    far = sorted((abs(centre(o)[0] - h[1]) + abs(centre(o)[1] - v[1]), i) for i, o in enumerate(things))
    if far[1][0] - far[0][0] < CORNER_GAP or far[0][0] > PX * 0.75:
        return None
    return f"What shape is in the {v[0]} {h[0]} corner?", things[far[0][1]]["shape"]


def relation(rng, objects):
    u = unique(objects, "color", "shape")
    if len(u) < 2:
        return None
    i, j = rng.choice(len(u), 2, replace=False)
    word, right = relation_word(rng, u[i], u[j]), rng.random() < 0.5
    return word and (ask_relation(u[i], word if right else OPPOSITE[word], u[j]), _yes(right))


def is_color(rng, objects, right: bool | None = None, chosen: dict | None = None):
    """Is the star red? The wrong colour is mostly one of another object."""
    o = chosen or pick(rng, unique(objects, "shape"))
    if o is None:
        return None
    right = rng.random() < 0.5 if right is None else right
    others = sorted({t["color"] for t in things_of(objects)} - {o["color"]})
    wrong = pick(rng, others) if others and rng.random() < 0.7 else pick(rng, [c for c in COLOR_NAMES if c != o["color"]])
    return f"Is the {o['shape']} {o['color'] if right else wrong}?", _yes(right)


def choice(rng, objects, letter: int | None = None):
    """Which of three is there? No two options share a colour or a shape, so that none stands out by its words."""
    right = pick(rng, pairs_of(objects))
    options = [right] if right else []
    for _ in range(20):
        if len(options) in (0, 3):
            break
        w = absent(rng, objects, rng.random() < 0.6)
        if all(w[0] != o[0] and w[1] != o[1] for o in options):
            options.append(w)
    if len(options) < 3:
        return None
    return with_options(rng, "Which object is in the image?", " ".join(right), [" ".join(w) for w in options[1:]], letter)


def choice_color(rng, objects, letter: int | None = None):
    """What colour is it? The wrong options are, if possible, colours of other objects."""
    o = pick(rng, unique(objects, "shape"))
    if o is None:
        return None
    others = sorted({t["color"] for t in things_of(objects)} - {o["color"]})
    rest = [c for c in COLOR_NAMES if c != o["color"] and c not in others]
    wrong = (list(rng.permutation(others)) + list(rng.permutation(rest)))[:2]
    return with_options(rng, f"What color is the {o['shape']}?", o["color"], [str(w) for w in rng.permutation(wrong)], letter)


def sign(rng, objects):
    signs = [o for o in objects if o["shape"] == "sign"]
    return ("What number is on the sign?", signs[0]["digits"]) if len(signs) == 1 else None


MAKERS: dict[str, Callable] = {f.__name__: f for f in (
    exist, color, shape, where, position, relation, is_color, choice, choice_color, sign)}
TYPES = list(MAKERS)


def make_questions(rng: np.random.Generator, objects: list[dict], n: int, weights: dict[str, float]) -> list[tuple[str, str, str]]:
    """Up to n different (question, answer, type) about one scene; types drawn by weight."""
    types, p = list(weights), np.array(list(weights.values()), float)
    out, seen = [], set()
    for k in rng.choice(len(types), 4 * n, p=p / p.sum()):
        made = MAKERS[types[k]](rng, objects)
        if made and made[0] not in seen:
            seen.add(made[0])
            out.append((*made, types[k]))
        if len(out) == n:
            break
    return out
