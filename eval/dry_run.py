"""`dry_run=true`: the grid of points, what they need, and what of it is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from eval import needs, official
from eval.records import Record
from eval.settings import Plan
from pruning.errors import InputError


@contextmanager
def settled(words: list[str]) -> Iterator[list[str]]:
    """The command line as it is; of a dry run all points in this process, whatever would run them, and no folder."""
    if "dry_run=true" not in map(str.lower, words):
        yield words
        return
    with tempfile.TemporaryDirectory() as folder:
        others = [word for word in words if not word.startswith("launcher=")]
        yield [*others, "launcher=basic", f"hydra.sweep.dir={folder}"]


def render(plans: list[Plan]) -> str:
    """A table a model and split, then its needs, then what is missing."""
    parts = []
    for key in dict.fromkeys((plan.model, plan.subset, plan.tasks) for plan in plans):
        own = [plan for plan in plans if (plan.model, plan.subset, plan.tasks) == key]
        own = [own[0].vanilla(own[0].shape.visual_tokens), *own] if unpruned_is_extra(own) else own
        states = {plan.folder: state(plan) for plan in own}
        parts += [*grid(own, states), "", *facts(own, states), ""]
        refused = list(dict.fromkeys(s for s in states.values() if s not in ("to run", "finished")))
        lines = [*needs.missing(own[0]), *refused]
        listed = ["missing, or not possible:", *(f"  - {line}" for line in lines)]
        parts += [*(listed if lines else ["nothing is missing"]), ""]
    return "\n".join(parts).rstrip()


def unpruned_is_extra(plans: list[Plan]) -> bool:
    """Whether the unpruned model is run though it is not named."""
    return plans[0].shape is not None and all(plan.method != "vanilla" for plan in plans)


def state(plan: Plan) -> str:
    """`to run`, `finished`, or why it cannot run."""
    try:
        if not plan.force and Record(plan).finished():
            return "finished"
        needs.make_pruner(plan)
    except InputError as error:
        return str(error)
    return "to run"


def grid(plans: list[Plan], states: dict) -> list[str]:
    """Methods down, budgets across."""
    from eval.table import columns

    budgets = sorted({plan.budget for plan in plans}, reverse=True)
    at = {(plan.label, plan.budget): states[plan.folder] for plan in plans}
    rows = [["method", *map(str, budgets)]]
    for label in dict.fromkeys(plan.label for plan in plans):
        cells = [at.get((label, budget), "") for budget in budgets]
        rows.append([label, *("no" if cell not in ("", "to run", "finished") else cell for cell in cells)])
    first = plans[0]
    return [f"{first.model}, {first.subset} split: {len(plans)} points into {first.out}", "", *columns(rows)]


def facts(plans: list[Plan], states: dict) -> list[str]:
    """Model, memory, data and hours."""
    plan, shape = plans[0], plans[0].shape
    out = [f"model      {plan.path}"]
    if shape is not None:
        out[0] += f": {rounded(shape.parameters)} parameters, {shape.visual_tokens} visual tokens"
        out.append(
            f"memory     about {needs.gigabytes(plan):.0f} GB with {plan.batch_size or needs.BATCH} images a batch, "
            f"{plan.cache_mb} MB of them for tower states (estimated from the configuration)"
        )
    sizes = {task: official.size(task, plan.data_dir) for task in plan.tasks}
    named = [f"{t} ({n[0]:,} questions on {n[1]:,} images)" if n else t for t, n in sizes.items()]
    out.append(f"data       {', '.join(named)}" + (f" in {plan.data_dir}" if plan.data_dir else ""))
    waiting = [p for p in plans if states[p.folder] == "to run"]
    hours = [needs.hours(p, task) for p in waiting for task in p.tasks]
    if hours and all(hour is not None for hour in hours):
        out.append(
            f"GPU hours  about {sum(hours):.1f} on one {needs.GPU} for {len(waiting)} points "  # type: ignore[arg-type]
            f"(estimated from FLOPs at {needs.REACHED:.0%} of its peak)"
        )
    return out


def rounded(count: int) -> str:
    """7.06e9 or 4.8e6."""
    return f"{count / 1e9:.2f}e9" if count >= 1e8 else f"{count / 1e6:.1f}e6"
