"""Every method equals its official code: all arrays of the golden files, found in the files themselves."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pruning import InputError
from tests import golden

DATA = Path(__file__).parent / "golden_data"
INFORMATION = "VisPruner_f32/"  # upstream's float32 choice depends on the machine; its page requires no equality
GOLDEN = {
    key: array
    for path in sorted(DATA.glob("*.npz"))
    for key, array in np.load(path).items()
    if not key.startswith(INFORMATION)
}
ran = cache(golden.run)


def parts(key: str) -> tuple[str, int, int]:
    """Name, seed and budget of `name/seed0/k64/field`.

    Two irregular kinds: `name/seed0/variant/field` has no budget, `name/batch0-1/k64/field` is of two seeds.
    """
    name, images, place, _ = key.split("/")
    kind, seed = images.split("-")[0][:-1], int(images.split("-")[0][-1])
    if kind == "batch":
        return f"{name}/batch", seed, int(place[1:])
    return (name, seed, int(place[1:])) if place[1:].isdigit() else (f"{name}/{place}", seed, 64)


@pytest.mark.parametrize("key", GOLDEN)
def test_equals_the_official_code(key: str) -> None:
    got, expected = ran(*parts(key))[key.rsplit("/", 1)[1]], GOLDEN[key]
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(got, expected, strict=True)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"unknown golden 'visionzap'; known: .*visionzip"):
        golden.run("visionzap", 0, 64)
