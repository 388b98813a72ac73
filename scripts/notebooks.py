"""Runs the notebooks and stores their outputs.

python scripts/notebooks.py            all of notebooks/
python scripts/notebooks.py 01 03      those whose names begin so
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, run from the repository's root.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}, record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this machine
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings and progress bars name places of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(beginnings: list[str]) -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not beginnings or path.name.startswith(tuple(beginnings)):
            nbformat.write(executed(path), path)
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
