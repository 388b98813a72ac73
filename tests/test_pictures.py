"""Pictures: what is bright, what is dimmed, what a trace adds."""

import numpy as np
import pytest
from PIL import Image

from eval.pictures import SIDE, draw_kept_tokens, kept_panel, method_sheet

GRID = (24, 24)
CELL = SIDE // 24


def plain():
    return Image.new("RGB", (336, 336), (200, 120, 40))


def inside(panel, patch):
    r, c = divmod(patch, 24)
    return np.asarray(panel)[r * CELL + 4 : (r + 1) * CELL - 4, c * CELL + 4 : (c + 1) * CELL - 4].reshape(-1, 3)


def test_kept_patches_are_untouched_and_the_rest_is_dark():
    panel = kept_panel(plain(), GRID, [0, 30, 575])
    for patch in (0, 30, 575):
        assert (inside(panel, patch) == (200, 120, 40)).all()
    assert inside(panel, 100).max() < 80


def draw(tmp_path, trace, index=(5, 300), answer="red"):
    path = tmp_path / "picture.png"
    draw_kept_tokens(plain(), GRID, index, "which? " * 60, answer, "blue", "red", "a title", trace, path)
    with Image.open(path) as picture:
        return picture.convert("RGB")


def test_a_trace_adds_a_panel_for_the_recovery_and_one_for_the_clusters(tmp_path):
    none = np.full(576, -1)
    into, removed, cluster = none.copy(), none.copy(), none.copy()
    into[[7, 8]], removed[[7, 8]], cluster[[5, 6, 300]] = 5, 2, (5, 5, 300)
    width = [
        draw(tmp_path, trace).width
        for trace in (None, {"recovered_into": none, "cluster": none}, {"recovered_into": into},
                      {"recovered_into": into, "removed_at": removed, "cluster": cluster})
    ]  # fmt: skip
    assert width[0] == width[1] < width[2] < width[3]
    assert width[3] - width[2] == width[2] - width[0] > SIDE


@pytest.mark.parametrize("index", [[], [-1, -1], [600, 5]])
def test_tokens_without_a_patch_are_no_error(tmp_path, index):
    assert draw(tmp_path, None, index, "").height > SIDE


def test_right_and_wrong_differ_and_equal_input_gives_equal_bytes(tmp_path):
    first = np.asarray(draw(tmp_path, None))
    assert (first == np.asarray(draw(tmp_path, None))).all()
    assert (first != np.asarray(draw(tmp_path, None, answer="blue"))).any()


def test_a_sheet_has_a_tile_a_method(tmp_path):
    for count in (2, 9):
        kept = {f"method {i}": range(16) for i in range(count)}
        method_sheet(plain(), kept, tmp_path / "sheet.png", GRID, "title", columns=5)
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width == 16 + min(count + 1, 5) * 316
            assert sheet.height == 52 + -(-(count + 1) // 5) * 342
