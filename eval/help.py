"""`python run.py --help`: the choices in a newcomer's words. Reads YAML only; torch stays out."""

from __future__ import annotations

from pathlib import Path

import yaml

from eval.settings import ROOT, TASKS
from pruning.registry import summary

CONFIGS = ROOT / "configs"
TEXT = """\
Prunes the visual tokens of a LLaVA and measures what that costs.

  python run.py budget=16 method=acgr_tatcs
      answers the embedded tasks with 16 of 576 visual tokens, and with all 576 for comparison
  python run.py -m budget=16,32,64 method=acgr_tatcs,cls_attention
      a sweep: six points in one process, then a report
  python run.py budget=64 method=divprune model=llava15_7b tasks=paper
      the same on LLaVA-1.5-7B and the paper's benchmarks (wants a GPU and a download)

budget=K        visual tokens of an image that reach the language model, 1 to 576 (576: nothing is pruned);
                LLaVA-NeXT: the total over five crops, up to 2880

method=NAME     how the tokens are chosen; hyper-parameters as method.NAME=VALUE
{method}

model=NAME      the LLaVA; model.path=FOLDER takes another one of the same kind
{model}

tasks=NAME      the questions; tasks.names=[mini_pope] asks fewer, tasks.split=dev the development images
{tasks}
  in embedded:
{embedded}

experiment=NAME ready-made sweeps (with -m)
{experiment}

launcher=NAME   how the points of a sweep run
{launcher}

tracking=NAME   where results are logged besides the files
{tracking}

Other options (name=default)
{options}

What is written, in OUT/MODEL/SPLIT/METHOD/BUDGET/
  metrics.json      scores, standard errors, shift metrics, seconds a stage, memory, versions, commit
  samples.parquet   every question: answer, score, shift metrics, kept patches
  config.yaml       the configuration that made it
  pictures/         the kept tokens drawn on some images
A finished point is not run again (force=true repeats it); a killed run goes on where it was.

Exit status: 0 done; 1 some point of a sweep failed or was refused, the others are reported; 2 bad input, nothing ran;
130 interrupted, 143 terminated. A budget that its method cannot reach on the model is bad input in a single run; in a
sweep it counts as done and is listed in the report as out of reach.
"""


def text() -> str:
    """The whole help."""
    groups = ("method", "model", "tasks", "experiment", "launcher", "tracking")
    listed = {name: listing(CONFIGS / name) for name in groups}
    return TEXT.format(**listed, embedded=listing(TASKS, "    "), options=options())


def listing(folder: Path, indent: str = "  ") -> str:
    """Name and first comment line of each YAML in `folder`."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    lines = [f"{indent}{name:<15} {first_comment(name, folder)}" for name in names]
    return "\n".join(lines) or f"{indent}(none yet)"


def first_comment(name: str, folder: Path) -> str:
    """The first comment line that is not a directive to Hydra."""
    line = summary(name, folder)
    if not line.startswith("@"):
        return line
    return (folder / f"{name}.yaml").read_text().splitlines()[1].lstrip("# ").strip()


def options() -> str:
    """The plain options of config.yaml with their comments."""
    out = []
    values = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    for line in (CONFIGS / "config.yaml").read_text().splitlines():
        name, _, comment = line.partition(" # ")
        if comment and name.split(":")[0] in values and not name.startswith("budget"):
            out.append(f"  {name.replace(': ', '='):<15} {comment}")
    return "\n".join(out)
