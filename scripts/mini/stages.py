"""Every stage of training in one table."""

from dataclasses import dataclass, field

LABEL_WEIGHTS = {"shape": 1.0, "color": 0.5, "heart": 1.0, "digit": 1.0, "near": 1.0, "offset": 1.5, "cls": 2.0, "cls_read": 2.0}
TOKENS = {"all": 5.0, "name": 0.3, "place": 0.3, "number": 1.0}
EVEN = {"exist": 1.0, "color": 1.0, "shape": 1.0, "where": 1.0, "position": 1.0, "relation": 1.0, "is_color": 1.0, "choice": 1.0,
        "choice_color": 1.0, "sign": 0.7}
PLACES = {**EVEN, "where": 2.0, "position": 2.0, "relation": 4.0}  # for when all but the places are known


@dataclass(frozen=True)
class Stage:
    """What is trained, on what, for how long (minutes of training time), from which earlier weights."""

    name: str
    part: str  # tower (with projector), language (on symbolic scenes), join
    minutes: float
    seed: int
    after: tuple[str, ...] = ()  # stages, each with an optional ":prefix" of the weights to take; none: from random weights
    px: int = 168
    batch: int = 16
    objects: tuple[int, int] = (1, 4)
    p_sign: float = 1.0
    n_signs: int = 1
    per_scene: int = 10  # questions a scene
    questions: dict[str, float] = field(default_factory=lambda: dict(EVEN))
    rate: float = 5e-4
    matrix_rate: float = 0.005
    tower_share: float = 1.0  # of the rates, for the tower
    warm: int = 30
    flat: float = 0.5
    end: float = 0.05
    threads: int = 1
    noise: float = 0.1
    place_noise: float = 0.02
    fixed_symbols: bool = True
    w_label: float = 1.0
    w_absolute: float = 3.0
    w_token: float = 2.0
    w_answer: float = 1.0
    token_weights: dict[str, float] = field(default_factory=lambda: dict(TOKENS))


COLD = ("tower_0", "language_0")  # what a warm start stands in for

STAGES = [
    Stage("tower_0", "tower", 40, 10, px=112, batch=32, objects=(1, 3), p_sign=0.8, n_signs=2, rate=1.5e-3, matrix_rate=0.02,
          w_token=0.0, warm=60),
    Stage("language_0", "language", 60, 20, px=168, batch=12, objects=(2, 5), rate=1e-3, matrix_rate=0.007, per_scene=14,
          fixed_symbols=False, warm=60),
    Stage("tower_1", "tower", 25, 11, after=("tower_0", "language_0:language."), px=168, batch=16, objects=(1, 4), p_sign=0.8, n_signs=3, rate=6e-4,
          matrix_rate=0.006),
    Stage("language_1", "language", 12, 21, after=("language_0",), px=168, batch=12, objects=(2, 5), questions=PLACES, rate=6e-4,
          matrix_rate=0.004, per_scene=14),
    Stage("tower_2", "tower", 13, 12, after=("tower_1",), px=224, batch=12, objects=(2, 6), p_sign=0.8, n_signs=4, rate=4e-4,
          matrix_rate=0.004, flat=0.4, threads=2),
    Stage("join_1", "join", 11, 31, after=("tower_1", "language_1:language."), px=168, batch=12, objects=(1, 4), questions=PLACES,
          rate=3e-4, matrix_rate=0.0025, flat=0.3, threads=2, per_scene=8, warm=15),
]
