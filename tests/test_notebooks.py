"""Every notebook runs from top to bottom, and is stored with its outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from scripts.notebooks import executed

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


def shapes(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What kinds of output each code cell has."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for out in cell.outputs for kind in out.get("data", {"text": 0})}) for cell in cells]


def shrunk(path: Path, folder: Path) -> Path:
    """A copy in which 04 takes one image instead of eight."""
    copy = folder / path.name
    copy.write_text(path.read_text().replace("limit=8", "limit=1"))
    return copy


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_outputs_are_stored(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    assert shapes(executed(shrunk(path, tmp_path))) == shapes(stored)  # a cell that fails raises
    drawn = {kind for kinds in shapes(stored) for kind in kinds}
    assert drawn & {"image/png", "image/jpeg"} or path.stem == "04_add_a_method"


def test_there_are_four_and_they_name_no_machine() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]
    root = str(Path(__file__).resolve().parent.parent)
    assert not any(root in path.read_text() for path in NOTEBOOKS)
