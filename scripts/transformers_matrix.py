"""The model tests under several versions of transformers: prints a table, exits 1 where anything failed.

    python scripts/transformers_matrix.py                          # the versions below and the newest 5.x
    python scripts/transformers_matrix.py 4.57.6 --folder ENVS     # keeps the environments for the next time

A version's environment lies on top of the one that runs this script (torch and the rest are shared) and holds only
what that transformers needs in other versions. The tests run in a copy of the repository whose embedded model is
written under the names of the published checkpoints: versions before 5.17 do not know the flat names of later ones
and would start with a random tower.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("4.57.6", "5.0.0", "5.17.0", "newest")
TESTS = ("real_models", "engineer", "decoder", "models", "full_size")  # those that run it and need no lmms-eval


def environment(folder: Path, version: str) -> Path:
    """The Python of an environment with transformers `version`, made where it is missing."""
    home = folder / version
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        scheme = {"base": str(home), "platbase": str(home)}
        packages = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        wanted = "transformers>=5,<6" if version == "newest" else f"transformers=={version}"
        # pip says which packages of the shared environment do not fit this version: none of them are used here
        command = [python, "-m", "pip", "install", "--quiet", "--upgrade", wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(home)
            sys.exit(f"error: pip could not install {wanted}:\n{done.stderr}")
    return python


def copy(folder: Path) -> Path:
    """The repository as every version can read it."""
    skip = shutil.ignore_patterns(".git", ".venv", "outputs", "results", "__pycache__")
    repository = shutil.copytree(ROOT, folder / "repository", ignore=skip)
    from safetensors.torch import load_file, save_file

    mini = repository / "models" / "mini"
    weights = load_file(mini / "model.safetensors")
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.", 1) for name in weights}
    save_file({names[name]: x for name, x in weights.items()}, mini / "model.safetensors", {"format": "pt"})
    config, tokenizer = (json.loads((mini / f).read_text()) for f in ("config.json", "tokenizer_config.json"))
    config["text_config"]["rope_theta"] = config["text_config"]["rope_parameters"]["rope_theta"]
    tokenizer["tokenizer_class"], tokenizer["extra_special_tokens"] = "PreTrainedTokenizerFast", {}
    (mini / "config.json").write_text(json.dumps(config))
    (mini / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return repository


def run(python: Path, repository: Path, report: Path) -> tuple[str, dict[str, int], list[str]]:
    """Version found, tests by outcome, names of those that did not pass."""
    code = "from importlib.metadata import version; print(version('transformers'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    tests = [f"tests/test_{name}.py" for name in TESTS]
    subprocess.run([python, "-m", "pytest", "-q", f"--junit-xml={report}", *tests], cwd=repository)
    suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return found, counts, bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--folder", type=Path, help="where the environments are kept; a temporary folder by default")
    given = parser.parse_args()
    rows, broken = [], []
    with tempfile.TemporaryDirectory() as temporary:
        repository, folder = copy(Path(temporary)), given.folder or Path(temporary)
        for version in given.versions:
            python = environment(folder.resolve(), version)
            found, counts, bad = run(python, repository, Path(temporary) / f"{version}.xml")
            wrong = counts["failures"] + counts["errors"]
            rows.append((found, counts["tests"] - wrong - counts["skipped"], wrong, counts["skipped"]))
            broken += [f"{found}: {name}" for name in bad]
    print("\n".join(broken), "| transformers | passed | failed | skipped |", "| --- | --- | --- | --- |", sep="\n")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
