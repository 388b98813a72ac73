"""lmms-eval's own command line with our model: `python -m eval.lmms_cli --model dcp_prune ...`, from the clone.

    python -m eval.lmms_cli --model dcp_prune --model_args model=llava15_7b,method=acgr_tatcs,budget=16 --tasks pope

It registers a manifest (lmms-eval's `ModelManifest`) and hands the words over to lmms-eval's main; every option is
lmms-eval's, and `--model_args` are the options of run.py (`path=` is short for `model.path=`). Official tasks are
asked as `tasks=paper` asks them, from the hub or, with the one option added, `--data_dir FOLDER`, from local parquet
files: lmms-eval is given a folder of task files that override where the data lie, and TextVQA's OCR tokens.

`python -m lmms_eval --model dcp_prune` works too where the entry point is installed (`pip install --no-deps -e .`
installs no package, only the entry point of pyproject.toml) and the clone is the working directory; tasks are then as
lmms-eval has them (TextVQA without OCR tokens).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from eval import official
from eval.settings import ROOT
from models.guard import guard_torchvision
from pruning.errors import InputError


def manifest() -> Any:
    """What lmms-eval's registry wants to know of our model (the entry point of pyproject.toml)."""
    guard_torchvision()
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="dcp_prune", simple_class_path="eval.lmms_plugin.DcpPrune")


def write_tasks(folder: Path, names: list[str], data_dir: str | None) -> None:
    """A task file each: the official one with what `tasks=paper` changes, its data in `data_dir` or on the hub."""
    protocol = yaml.safe_load((ROOT / "configs" / "tasks" / "paper.yaml").read_text())
    for name in names:
        spec = official.spec(name, data_dir, protocol["ocr"])
        assert isinstance(spec, dict)
        text = yaml.safe_dump({key: value for key, value in spec.items() if not callable(value)})
        if name == "gqa":  # its pictures are a data set of their own
            code = f"from eval.official import GqaImages\n\nvisual = GqaImages({data_dir!r}).visual\n"
            (folder / "pictures.py").write_text(code)
            text += "doc_to_visual: !function pictures.visual\n"
        (folder / f"{name}.yaml").write_text(text)


def main(words: list[str] | None = None) -> None:
    """lmms-eval's main, with our model registered."""
    parser = argparse.ArgumentParser(prog="python -m eval.lmms_cli", add_help=False, allow_abbrev=False)
    parser.add_argument("--data_dir", type=lambda folder: str(Path(folder).expanduser().resolve()))
    own, words = parser.parse_known_args(words)
    ours = manifest()
    from lmms_eval.cli.dispatch import main as lmms_main
    from lmms_eval.models import MODEL_REGISTRY_V2

    MODEL_REGISTRY_V2.register_manifest(ours, overwrite=True)
    before = sys.argv
    with tempfile.TemporaryDirectory() as folder:
        at = words.index("--tasks") + 1 if "--tasks" in words else len(words)
        names = words[at].split(",") if at < len(words) else []
        if names and all(official.source(name) for name in names):
            try:
                write_tasks(Path(folder), names, own.data_dir)
            except InputError as error:
                parser.error(str(error))
            words[at] = folder
        sys.argv = ["lmms_eval", *words]
        try:
            lmms_main()
        finally:
            sys.argv = before


if __name__ == "__main__":
    main()
