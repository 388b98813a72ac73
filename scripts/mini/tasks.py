"""The five embedded tasks of one split: 200 images and 200 questions a task, answers balanced.

Where an answer is yes or no, the same words (the same pair, or the same two objects) are asked with both answers, so that
the text alone decides nothing.
"""

import json
from collections import Counter

import numpy as np

from .questions import (
    MAKERS,
    OPPOSITE,
    absent,
    ask_exist,
    ask_relation,
    crossed,
    is_color,
    pairs_of,
    pick,
    relation_word,
    unique,
)
from .world import World, jpeg

IMAGES = PER_TASK = 200
QUALITY = 88
Row = dict[str, object]
Scenes = list[list[dict]]


def make_images(world: World) -> tuple[Scenes, list[Row]]:
    """Scenes of 4 to 9 objects and one sign, and their rows (image_id, image, boxes)."""
    scenes, rows = [], []
    while len(scenes) < IMAGES:
        objects = world.layout()
        if len(objects) < 5:
            continue
        boxes = [{"shape": o["shape"], "color": o["color"], "box": list(o["box"]), "digits": o.get("digits")} for o in objects]
        image_id = f"{len(scenes):03d}"
        rows.append({"image_id": image_id, "image": {"bytes": jpeg(world.render(objects), QUALITY), "path": f"{image_id}.jpg"},
                     "boxes": json.dumps(boxes)})
        scenes.append(objects)
    return scenes, rows


def gqa(rng: np.random.Generator, scenes: Scenes) -> list[Row]:
    """40 each of colour, shape, where, position and relation; within a type no answer above its fair share (by rounding up)."""
    kinds = {"color": 8, "shape": 12, "where": 4, "position": 12, "relation": 2}  # type: number of answers
    each, rows, used = PER_TASK // len(kinds), [], set()
    for kind, answers in kinds.items():
        given = Counter()
        for i in [int(i) for _ in range(100) for i in rng.permutation(IMAGES)]:
            if sum(given.values()) == each:
                break
            made = None if (kind, i) in used or sum(k[1] == i for k in used) > 1 else MAKERS[kind](rng, scenes[i])
            if made and given[made[1]] < -(-each // answers):
                given[made[1]] += 1
                used.add((kind, i))
                rows.append({"image": i, "question": made[0], "answer": made[1], "type": kind})
        assert sum(given.values()) == each, kind
    return rows


def mme(rng: np.random.Generator, scenes: Scenes) -> list[Row]:
    """100 pairs, one an image on half of the images: existence 40, colour 30, relation 30; one question of a pair is yes, one no."""
    rows, used, left = [], set(), {"existence": 40, "color": 30, "relation": 30}
    for i in [int(i) for i in rng.permutation(IMAGES)] * 3:
        if i in used:
            continue
        kind = pick(rng, [k for k, n in left.items() for _ in range(n)])
        if kind is None:
            break
        objects, pair = scenes[i], None
        if kind == "existence":
            pair = ask_exist(pick(rng, pairs_of(objects))), ask_exist(absent(rng, objects, rng.random() < 0.6))
        elif kind == "color":
            o = pick(rng, unique(objects, "shape"))
            if o:
                pair = tuple(is_color(rng, objects, right=r, chosen=o)[0] for r in (True, False))
        else:
            u = unique(objects, "color", "shape")
            if len(u) > 1:
                a, b = (u[k] for k in rng.choice(len(u), 2, replace=False))
                word = relation_word(rng, a, b)
                pair = word and (ask_relation(a, word, b), ask_relation(a, OPPOSITE[word], b))
        if pair:
            left[kind] -= 1
            used.add(i)
            both = [(pair[0], "yes"), (pair[1], "no")]
            for k in rng.permutation(2):
                rows.append({"image": i, "question": both[k][0], "answer": both[k][1], "type": kind, "pair_id": f"{len(rows) // 2:03d}"})
    assert not sum(left.values()), left
    return rows


def pope(rng: np.random.Generator, scenes: Scenes) -> list[Row]:
    """At most two questions an image. Every pair asked is asked of one image that holds it and of one that does not.

    random: any pair; popular: one of the 12 pairs that most images of the split hold; adversarial: the image without it holds
    its colour and its shape, not together.
    """
    holds = [set(pairs_of(s)) for s in scenes]
    popular = {p for p, _ in Counter(p for h in holds for p in h).most_common(12)}
    cross = [set(crossed(s)) for s in scenes]
    rows, free = [], [int(i) for i in rng.permutation(IMAGES)] * 2
    for kind, n in (("popular", 33), ("adversarial", 34), ("random", 33)):
        for _ in range(n):
            while True:
                i = pick(rng, free)
                asked = sorted(holds[i] & popular) if kind == "popular" else sorted(holds[i])
                p = pick(rng, asked)
                without = [j for j in free if p and p not in holds[j] and (kind != "adversarial" or p in cross[j])]
                if without:
                    break
            j = pick(rng, without)
            rows += [{"image": i, "question": ask_exist(p), "answer": "yes", "type": kind},
                     {"image": j, "question": ask_exist(p), "answer": "no", "type": kind}]
            free.remove(i)
            free.remove(j)
    return rows


def sqa(rng: np.random.Generator, scenes: Scenes) -> list[Row]:
    """Multiple choice: which object is there (120), which colour an object has (80); letters in turn.

    One question an image; where a scene allows none of the kinds that are left, another image is asked twice.
    """
    rows, left = [], {"choice": 120, "choice_color": 80}
    for turn, i in [(t, int(i)) for t in range(20) for i in rng.permutation(IMAGES)]:
        kind = pick(rng, [k for k, n in left.items() for _ in range(n)])
        if kind is None:
            break
        made = MAKERS[kind](rng, scenes[i], letter=len(rows) % 3)
        if made is None or sum(r["image"] == i for r in rows) > turn // 10:
            continue
        left[kind] -= 1
        options = [line[3:] for line in made[0].split("\n")[1:]]
        rows.append({"image": i, "question": made[0], "answer": made[1], "type": kind, "options": options})
    assert not sum(left.values()), left
    return rows


def textvqa(rng: np.random.Generator, scenes: Scenes) -> list[Row]:
    """The sign of every image; type is the number's length."""
    made = [MAKERS["sign"](rng, s) for s in scenes]
    return [{"image": i, "question": q, "answer": a, "type": f"{len(a)} digits"} for i, (q, a) in enumerate(made)]


TASKS = {"mini_gqa": gqa, "mini_mme": mme, "mini_pope": pope, "mini_sqa": sqa, "mini_textvqa": textvqa}


def make_split(seed: int) -> dict[str, list[Row]]:
    """All tables of a split: images, and one a task with question_id, image_id, question, answer, type and its own columns."""
    world = World(seed)
    scenes, images = make_images(world)
    out = {"images": images}
    for name, make in TASKS.items():
        rows = make(world.rng, scenes)
        rows = sorted(rows, key=lambda r: (int(r["image"]), str(r.get("pair_id", ""))))
        out[name] = [{"question_id": f"{name}_{k:03d}", "image_id": f"{int(r.pop('image')):03d}", **r} for k, r in enumerate(rows)]
    return out
