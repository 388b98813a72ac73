"""What a point needs before it can run, and what of it is missing: nothing heavy is loaded to find out.

The same checks end a run early with one line, and make the table of `dry_run=true`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eval import official
from eval.records import Record
from eval.settings import Plan, embedded_names
from models.shape import check_budget
from pruning.errors import InputError

GPU, PEAK, REACHED = "A100", 312e12, 0.4  # bfloat16 operations a second, and the share that we count on
REST = 0.03  # seconds a question for all that is no matrix product: pictures, selection, short decoding, records
BATCH = 8  # images at a time, for the estimate of memory


def make_pruner(plan: Plan) -> Any:
    """The method with its hyper-parameters.

    Raises:
        InputError: a value that the method refuses, or a budget that it cannot reach on this model.
    """
    from pruning.registry import load

    pruner = load(plan.method, max(plan.budget, 1), **plan.parameters)
    if plan.shape is not None:
        check_budget(pruner, plan.shape.visual_tokens, plan.shape.text.layers, plan.shape.crops)
    return pruner


def ready(plan: Plan) -> None:
    """Raises InputError where a point that is not finished cannot run, before anything heavy is loaded."""
    if plan.force or not Record(plan).finished():
        make_pruner(plan)
        for line in missing(plan):
            raise InputError(line)


def missing(plan: Plan) -> Iterator[str]:
    """What cannot be had: one line each, with where it was looked for and what to set."""
    from models import hub

    ask = functools.cache(hub.unreachable)  # the network is asked once
    names = {"model.path": plan.path, "model.clip_text": plan.options.get("clip_text")}
    hubs = {setting: name for setting, name in names.items() if name is not None and not Path(name).exists()}
    for setting, name in hubs.items():
        if line := hub.missing_model(name, setting, ask):
            yield line
    for task in plan.tasks:
        if task not in embedded_names() and (line := missing_data(task, plan.data_dir, ask)):
            yield line


def missing_data(task: str, data_dir: str | None, ask: Callable[[], str | None]) -> str | None:
    """Why the data of an official task cannot be had; groups are left to lmms-eval."""
    from models import hub

    source = official.source(task)
    if data_dir is None:
        if source is None:
            return None
        include = source.include if task in official.COUNTS else None  # of other tasks we do not know the files
        return hub.missing_data(task, source.repo, source.configs, include, ask)
    try:
        official.spec(task, data_dir, None)
    except InputError as error:
        return str(error)
    return None


# --- estimates -------------------------------------------------------------------------------------------
def gigabytes(plan: Plan) -> float | None:
    """GPU memory that a point takes, in 10^9 bytes."""
    size = 4 if plan.dtype == "float32" else 2
    return plan.shape and plan.shape.gigabytes(plan.batch_size or BATCH, 1, plan.cache_mb, size)


def hours(plan: Plan, task: str) -> float | None:
    """GPU hours of one task of a point, the tower's pass included; None for tasks of unknown size."""
    found = official.size(task, plan.data_dir)
    if plan.shape is None or found is None:
        return None
    questions, images = (min(n, plan.limit or n) for n in found)
    work = images * plan.shape.tower_flops() + questions * plan.shape.answer_flops(plan.budget)
    return (work / (PEAK * REACHED) + REST * questions) / 3600
