"""The entry that parity checks call: a method's output on the golden inputs, by a golden's key prefix."""

from __future__ import annotations

import numpy as np

from pruning import InputError
from tests.golden_decoder import CASES as DECODER
from tests.golden_paper5 import CASES as PAPER
from tests.golden_wider import CASES as WIDER

CASES = PAPER | WIDER | DECODER


def run(name: str, seed: int, budget: int) -> dict[str, np.ndarray]:
    """The fields of golden `name` (`visionzip`, `flowcut_enc`, `DivPrune`, ...) for `inputs.make(seed)`.

    Computed by the code that `configs/method/*.yaml` instantiates. A golden without a budget has its variant in
    the name (`PruMerge/adaptive`) and ignores `budget`.

    Raises:
        InputError: no golden of that name.
    """
    if name not in CASES:
        raise InputError(f"unknown golden '{name}'; known: {', '.join(sorted(CASES))}")
    return CASES[name](seed, budget)
