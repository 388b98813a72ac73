"""Runs one point: the unpruned baseline first, then the pruned model, then its record is written."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import sys
import traceback
from collections import Counter
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pandas as pd

from eval import facts
from eval.journal import Journal
from eval.needs import make_pruner
from eval.outcome import Result, fill, header, lookup, summarise, tabulate, taken_over
from eval.records import METRICS, SAMPLES, Record, damage, disk_errors, write_samples
from eval.settings import Plan, embedded_names, portable, short_hash
from models.load import settled
from models.shape import check_budget, parse
from pruning.errors import InputError

log = logging.getLogger("dcp_prune")


def run(plan: Plan) -> Result:
    """Runs a point, and the unpruned baseline before it, unless they are recorded already.

    Raises:
        InputError: something the user can change; nothing half-written is left.
    """
    record = Record(plan)
    if plan.force or not record.finished():
        pruner = make_pruner(plan)  # a bad hyper-parameter or budget ends here, before the model is loaded
        if plan.method != "vanilla":
            llava = load_model(plan)
            check_reach(pruner, llava)
            llava.expect(pruner)
    if plan.method == "vanilla":
        return ensure(plan, None)
    unpruned = plan.vanilla(full_budget(plan))
    if not Record(unpruned).finished():
        log.info("running the unpruned model first, as the baseline")
    return ensure(plan, ensure(unpruned, None))


def check_reach(pruner: Any, llava: Any) -> None:
    """Raises InputError, or OutOfReach, where the method cannot reach its budget on the loaded model."""
    layers, crops = llava.model.config.text_config.num_hidden_layers, llava.visual_tokens // llava.tower.patches
    check_budget(pruner, llava.visual_tokens, layers, crops)


def full_budget(plan: Plan) -> int:
    """The model's number of visual tokens, from its configuration where that is at hand."""
    return plan.shape.visual_tokens if plan.shape is not None else load_model(plan).visual_tokens


def ensure(plan: Plan, baseline: Result | None) -> Result:
    """The point's result: read where it is finished, else run and recorded."""
    record = Record(plan)
    if not record.partial.exists() and not plan.force and record.finished():
        return finished(record, baseline)  # without a lock, as its disk may be there to read only
    with record.lock(log.info):
        if not plan.force and record.finished():
            record.forget_journal()  # of a process that was killed right after its last step
            return finished(record, baseline)
        if baseline is not None and prunes_nothing(plan, baseline):
            metrics, samples = taken_over(plan, baseline)
            record.write(metrics, lambda folder: write_samples(folder / SAMPLES, samples))
            record.forget_journal()
        else:
            metrics, samples = evaluate(plan, record, baseline)
    return Result(plan, plan.folder, metrics, samples, baseline)


def finished(record: Record, baseline: Result | None) -> Result:
    """The result of a finished record."""
    metrics, samples = read(record.folder)
    check_precision(record, metrics)
    return Result(record.plan, record.folder, metrics, samples, baseline, fresh=False)


def prunes_nothing(plan: Plan, baseline: Result) -> bool:
    """Whether the point is the unpruned model by the contract of `Pruner.finish`, to the last bit.

    Methods inside the language model and `downsample` change nothing at the full budget either, but compute in
    another order.
    """
    full = baseline.plan.budget
    if plan.budget != full:
        return False
    pruner = make_pruner(plan)
    return pruner.keeps(full) == full and not (pruner.inside_language_model or pruner.resizes_image)


def check_precision(record: Record, metrics: dict[str, Any]) -> None:
    """Raises InputError where dtype=auto is not here what it was on the machine that made the record.

    Not part of the identity: a dry run, or the machine that hands out the jobs, may have no GPU of its own.
    """
    if record.plan.dtype != "auto":
        return
    here, _ = settled("auto", record.plan.device)
    was = metrics.get("protocol", {}).get("dtype", here)
    if was != here:
        raise InputError(
            f"'{record.folder}' was computed in {was}, and dtype=auto is {here} here; "
            f"choose another out= or repeat it with {record.again}"
        )


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json and samples.parquet of a record.

    Raises:
        InputError: they cannot be read.
    """
    with damage(folder):
        metrics = json.loads((folder / METRICS).read_text())
        if not {"tasks", "shift", "seconds"} <= set(metrics):
            raise ValueError("metrics.json is not whole")
        return metrics, pd.read_parquet(folder / SAMPLES)


def fail(plan: Plan, reason: str, status: str = "failed", error: BaseException | None = None) -> None:
    """Records that a point has no result and why, unless a finished record is there; a traceback where it broke.

    What stands in the way of the record is left to the line that said why the point failed.
    """
    record = Record(plan)

    def tell(folder: Path) -> None:
        if status == "failed" and error is not None:
            (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))

    with contextlib.suppress(InputError, OSError), record.lock(log.info):
        old = record.read()
        if old is None or old.get("status") != "finished":
            record.write(header(plan) | {"status": status, "reason": reason}, tell)


# --- the model -------------------------------------------------------------------------------------------
def load_model(plan: Plan) -> Any:
    """The plan's model; all points of a process share it and its cache of tower states."""
    if plan.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    options = tuple(sorted(plan.options.items()))
    return _load(plan.path, plan.prompt, plan.dtype, plan.device, plan.cache_mb, options)


@functools.lru_cache(maxsize=1)
def _load(
    path: str, prompt: str, dtype: str, device: str, cache_mb: int, options: tuple[tuple[str, Any], ...]
) -> Any:
    """`load_model` of hashable words; the last model stays in memory."""
    from transformers.utils.logging import disable_progress_bar

    from models.load import load

    disable_progress_bar()
    return load(path, prompt, dtype, device, cache_bytes=cache_mb * 2**20, **dict(options))


def auto_batch(llava: Any, questions: int) -> int:
    """Images a batch: 8 on a CPU; on a GPU as many as fit a third of the free memory, at most 64."""
    import torch

    if llava.device.type != "cuda":
        return 8
    image = parse(llava.model.config.to_dict()).image_bytes(questions, llava.embed.weight.element_size())
    free, _ = torch.cuda.mem_get_info(llava.device)
    return max(1, min(64, free // 3 // image))


# --- evaluation ------------------------------------------------------------------------------------------
def evaluate(plan: Plan, record: Record, baseline: Result | None) -> tuple[dict[str, Any], pd.DataFrame]:
    """Asks all questions and writes the record."""
    start = perf_counter()
    llava, pruner = load_model(plan), make_pruner(plan)
    loaded = perf_counter()
    from eval.lmms_model import PrunedLlava

    quiet()
    journal = open_journal(plan, record, precision(llava))
    held = journal.answers
    tasks = load_tasks(plan)
    llava.seconds.clear()
    llava.cache.turn()
    lm = PrunedLlava(
        llava,
        pruner,
        plan.batch_size or auto_batch(llava, len(tasks)),
        journal,
        f"{plan.label} {plan.budget}",
        lookup(baseline),
        keep_logits=plan.method == "vanilla",
        pictured=plan.pictures,
        screen=sys.stderr,
        new_tokens=plan.protocol.get("max_new_tokens"),
        data=f"{plan.split}/{plan.own_data}",
    )
    ready = perf_counter()
    with disk_errors(record.folder):
        try:
            found = ask(lm, tasks, plan, record.partial)
        finally:
            journal.close()  # writes what a full disk did not take before, and fails again
    asked = perf_counter()
    samples, places = tabulate(found, lm)
    seconds = Counter({"load model": loaded - start, "load tasks": ready - loaded}) + llava.seconds
    known = sum(llava.seconds.values())
    seconds["lmms-eval and rest"] = max(0.0, asked - ready - known)
    metrics = summarise(plan, found, samples) | {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "resumed": (held - journal.answers) / max(1, len(lm.rows)),  # share of the answers that cost no seconds here
        "protocol": protocol(plan, lm),
        "peak_memory_mb": round(facts.peak_memory_mb(), 1),
    }
    record.write(metrics, lambda folder: fill(folder, plan, lm, samples, places, baseline))
    record.forget_journal()
    return metrics, samples


def precision(llava: Any) -> str:
    """The model's dtype in a word."""
    return str(llava.embed.weight.dtype).removeprefix("torch.")


def protocol(plan: Plan, lm: Any) -> dict[str, Any]:
    """How the questions were asked: decoding, longest answers, picture and packing switches, text features."""
    text = None
    if lm.pruner.reads_question:
        clip = plan.options.get("clip_text") if lm.pruner.reads_clip else None
        text = f"CLIP text tower of {portable(clip)}" if clip else "input embeddings of the language model"
    switches = {name: value for name, value in plan.options.items() if name != "clip_text"}
    return {
        "decoding": "greedy",
        "dtype": precision(lm.llava),
        "max_new_tokens": lm.lengths,
        **switches,
        **ocr(plan),
        "text_features": text,
    }


def ocr(plan: Plan) -> dict[str, bool]:
    """Whether TextVQA's questions carried OCR tokens, where TextVQA was asked."""
    asked = any(task.startswith("textvqa") for task in plan.tasks)
    return {"ocr": bool(plan.protocol.get("ocr"))} if asked else {}


def open_journal(plan: Plan, record: Record, dtype: str) -> Journal:
    """The point's journal; says so where it goes on with an old one."""
    identity = {**plan.identity, "dtype": dtype, "batch_size": plan.batch_size, "pictures": plan.pictures}
    with disk_errors(record.folder):
        if plan.force:
            record.forget_journal()
        journal = Journal(record.journal, short_hash(identity))
    if journal.batches:
        log.info("going on with an interrupted run: %d batches are done", len(journal.batches))
    return journal


def load_tasks(plan: Plan) -> tuple[Any, ...]:
    """The plan's lmms-eval tasks."""
    from eval import task_set

    with contextlib.redirect_stderr(io.StringIO()):
        return task_set.load_tasks(plan.tasks, plan.split, plan.data_dir, plan.limit, plan.protocol.get("ocr"))


def quiet() -> None:
    """Leaves the screen to our own progress bar and table."""
    import datasets
    from loguru import logger

    logger.remove()
    datasets.disable_progress_bars()


def ask(lm: Any, tasks: tuple[Any, ...], plan: Plan, scratch: Path) -> dict[str, Any]:
    """lmms-eval's own evaluation of our model; files that tasks write for a leaderboard go to `scratch`."""
    from lmms_eval.evaluator import simple_evaluate

    own = set(plan.tasks) <= set(embedded_names())
    paths = SimpleNamespace(output_path=str(scratch), process_with_media=False)
    with contextlib.redirect_stderr(io.StringIO()):  # its own bars; ours was given the screen before
        return simple_evaluate(
            model=lm,
            tasks=list(tasks),
            task_manager=SimpleNamespace(all_subtasks=[], load_task_or_group=None),
            limit=None if own else plan.limit,
            bootstrap_iters=0,
            cli_args=paths,
            process_docs_parallel=1,
            random_seed=plan.seed,
            numpy_random_seed=plan.seed,
            torch_random_seed=plan.seed,
        )
