"""One point: the unpruned baseline, the pruned run, the record."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from eval import facts
from eval.journal import Journal
from eval.records import LOGITS, SAMPLES, Record, disk_errors
from eval.settings import Plan, short_hash
from pruning.errors import InputError

log = logging.getLogger("dcp_prune")


@dataclass
class Result:
    """What a finished point holds."""

    plan: Plan
    folder: Path
    metrics: dict[str, Any]
    samples: pd.DataFrame
    baseline: Result | None = None  # the unpruned run of the same model and questions
    fresh: bool = True  # False: it was there already


def run(plan: Plan) -> Result:
    """Runs a point, and the unpruned baseline before it, unless they are recorded already.

    Raises:
        InputError: something the user can change; nothing half-written is left.
    """
    record = Record(plan)
    if plan.force or not record.finished():
        pruner = make_pruner(plan)  # a bad hyper-parameter ends here, before the model is loaded
        if plan.method != "vanilla":
            llava = load_model(plan)
            pruner.keeps(llava.visual_tokens)
    if plan.method == "vanilla":
        return ensure(plan, None)
    full = full_budget(plan)
    return ensure(plan, ensure(plan.vanilla(full), None))


def full_budget(plan: Plan) -> int:
    """The model's number of visual tokens, from its config.json where that is at hand."""
    from eval.settings import visual_tokens

    return visual_tokens(plan.path) or load_model(plan).visual_tokens


def ensure(plan: Plan, baseline: Result | None) -> Result:
    """The point's result: read where it is finished, else run and recorded."""
    record = Record(plan)
    with record.lock(log.info):
        if not plan.force and record.finished():
            log.info("%s is finished; force=true repeats it", plan.folder)
            return Result(plan, plan.folder, *read(plan.folder), baseline, fresh=False)
        if plan.method == "vanilla" and plan.pictures == 0:
            log.info("running the unpruned model first, as the baseline")
        metrics, samples = evaluate(plan, record, baseline)
    return Result(plan, plan.folder, metrics, samples, baseline)


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json and samples.parquet of a record."""
    return json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / SAMPLES)


def fail(plan: Plan, reason: str) -> None:
    """Records that a point has failed, unless a finished record is there."""
    record = Record(plan)
    with record.lock(log.info):
        old = record.read()
        if old is None or old.get("status") != "finished":
            record.write(header(plan) | {"status": "failed", "reason": reason})


def header(plan: Plan) -> dict[str, Any]:
    """What every record says of its point."""
    return {
        "method": plan.method,
        "budget": plan.budget,
        "model": plan.model,
        "split": plan.subset,
        "overrides": plan.overrides,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": facts.versions(),
        "commit": facts.commit(),
        "hardware": facts.hardware(),
    }


# --- the model -------------------------------------------------------------------------------------------
def load_model(plan: Plan) -> Any:
    """The plan's model; all points of a process share it and its cache of tower states."""
    if plan.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    return _load(plan.path, plan.prompt, plan.dtype, plan.device, plan.cache_mb)


@functools.lru_cache(maxsize=1)
def _load(path: str, prompt: str, dtype: str, device: str, cache_mb: int) -> Any:
    from transformers.utils.logging import disable_progress_bar

    from models.load import load

    disable_progress_bar()
    return load(path, prompt, dtype, device, cache_bytes=cache_mb * 2**20)


def make_pruner(plan: Plan) -> Any:
    """The method with its hyper-parameters.

    Raises:
        InputError: a value that the method refuses.
    """
    from pruning.registry import load

    return load(plan.method, plan.budget, **plan.parameters)


def auto_batch(llava: Any, questions: int) -> int:
    """Images a batch: 8 on a CPU; on a GPU as many as fit a third of the free memory, at most 64.

    An image holds the keys and values of its N tokens once, and about four activations of that size.
    """
    import torch

    if llava.device.type != "cuda":
        return 8
    c = llava.model.config.text_config
    size = llava.embed.weight.element_size()
    tokens = llava.visual_tokens + 64 * questions
    image = tokens * size * (2 * c.num_hidden_layers * c.hidden_size + 4 * c.intermediate_size)
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
    journal = open_journal(plan, record)
    tasks = load_tasks(plan)
    llava.seconds.clear()
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
    )
    ready = perf_counter()
    try:
        with disk_errors(record.folder):
            found = ask(lm, tasks, plan)
    finally:
        journal.close()
    asked = perf_counter()
    samples, logits = tabulate(found, lm)
    seconds = Counter({"load model": loaded - start, "load tasks": ready - loaded}) + llava.seconds
    known = sum(llava.seconds.values())
    seconds["lmms-eval and rest"] = max(0.0, asked - ready - known)
    metrics = summarise(plan, found, samples) | {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_mb": round(facts.peak_memory_mb(), 1),
    }
    record.write(metrics, lambda folder: fill(folder, plan, lm, samples, logits, baseline))
    record.forget_journal()
    return metrics, samples


def open_journal(plan: Plan, record: Record) -> Journal:
    """The point's journal; says so where it goes on with an old one."""
    identity = {**plan.identity, "batch_size": plan.batch_size, "pictures": plan.pictures}
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
        return task_set.load_tasks(plan.tasks, plan.split, plan.data_dir, plan.limit)


def quiet() -> None:
    """Leaves the screen to our own progress bar and table."""
    import datasets
    from loguru import logger

    logger.remove()
    datasets.disable_progress_bars()


def ask(lm: Any, tasks: tuple[Any, ...], plan: Plan) -> dict[str, Any]:
    """lmms-eval's own evaluation of our model."""
    from lmms_eval.evaluator import simple_evaluate

    from eval.settings import embedded_names

    own = set(plan.tasks) <= set(embedded_names())
    paths = SimpleNamespace(output_path=str(plan.out), process_with_media=False)
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


def lookup(baseline: Result | None) -> Any:
    """Request -> first-token logits of the unpruned run, (V,) or None."""
    if baseline is None or not (baseline.folder / LOGITS).is_file():
        return lambda key: None
    import torch

    table = np.load(baseline.folder / LOGITS, mmap_mode="r")
    at = {(t, d): row for row, (t, d) in enumerate(zip(baseline.samples["task"], baseline.samples["doc_id"]))}

    def logits(key: tuple[str, int, int]) -> Any:
        row = at.get(key[:2])
        return None if row is None else torch.from_numpy(table[row].astype(np.float32))

    return logits


def tabulate(found: dict[str, Any], lm: Any) -> tuple[pd.DataFrame, np.ndarray | None]:
    """samples.parquet (record contract) and the first logits (n, V) float16 where they were kept."""
    import base64

    from pruning.shift import METRICS

    rows, logits = [], []
    for task, samples in found["samples"].items():
        for sample in samples:
            row = lm.rows[task, int(sample["doc_id"]), 0]
            doc = sample["doc"]
            said = sample["filtered_resps"][0]
            rows.append(
                {
                    "task": task,
                    "doc_id": int(sample["doc_id"]),
                    "question_id": str(doc.get("question_id", sample["doc_id"])),
                    "image_id": str(image_name(task, sample)),
                    "type": text_or_none(doc.get("type", doc.get("category"))),
                    "pair_id": text_or_none(doc["question_id"] if task == "mme" else doc.get("pair_id")),
                    "question": sample["arguments"][0] if sample["arguments"] else "",
                    "target": str(sample["target"]),
                    "prediction": said if isinstance(said, str) else json.dumps(said),
                    "score": float("nan") if row["failed"] else sample_score(sample),
                    "failed": row["failed"],
                    "visual_tokens": row["visual_tokens"],
                    **{f"shift_{name}": row["shifts"].get(name, float("nan")) for name in METRICS},
                    "output_kl": row["output_kl"],
                    "index": np.asarray(row["index"], np.int16),
                }
            )
            if lm.keep_logits:
                logits.append(np.frombuffer(base64.b64decode(row.get("logits", "")), np.float16))
    table = pd.DataFrame(rows)
    table["output_kl"] = table["output_kl"].astype("float64")
    table["visual_tokens"] = table["visual_tokens"].astype("float64")
    return table, stack(logits)


def stack(rows: list[np.ndarray]) -> np.ndarray | None:
    """(n, V) of rows (V,); a failed question's empty row becomes NaN."""
    width = max((len(row) for row in rows), default=0)
    blank = np.full(width, np.nan, np.float16)
    return np.stack([row if len(row) else blank for row in rows]) if width else None


def image_name(task: str, sample: dict[str, Any]) -> Any:
    """What tells images apart in a task's documents; the document itself where nothing does."""
    doc = sample["doc"]
    for name in ("image_id", "imageId", "image_source", *(["question_id"] if task == "mme" else [])):
        if doc.get(name) is not None:
            return doc[name]
    return f"{task}-{sample['doc_id']}"


def text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def sample_score(sample: dict[str, Any]) -> float:
    """The score 0..1 of one question: its task's first metric that says right or wrong."""
    known = ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash")
    for name, value in sample.items():
        if name in known or name in ("input_media", "submission"):
            continue
        value = value.get("score") if isinstance(value, dict) else value
        if isinstance(value, int | float | np.floating):
            return float(value)
    return float("nan")


def summarise(plan: Plan, found: dict[str, Any], samples: pd.DataFrame) -> dict[str, Any]:
    """metrics.json (record contract), without times and memory."""
    from eval.scores import percent, tally_frame, task_score
    from eval.statistics import resample

    tasks = {}
    for task, rows in samples.groupby("task", sort=False):
        drawn = percent(resample(tally_frame(rows.assign(task="")), seed=plan.seed))
        given = {k.split(",")[0]: v for k, v in found["results"][task].items() if "," in k and "_stderr" not in k}
        tasks[str(task)] = {
            "n": len(rows),
            "score": task_score(rows),
            "stderr": float(np.nanstd(drawn)),
            "metrics": {name: float(v) for name, v in given.items() if isinstance(v, int | float | np.floating)},
        }
    names = [name for name in samples if name.startswith("shift_")]
    mean = samples[names].mean()
    return header(plan) | {
        "status": "finished",
        "tasks": tasks,
        "average": float(np.mean([task["score"] for task in tasks.values()])),
        "shift": {name.removeprefix("shift_"): none_if_nan(mean[name]) for name in names},
        "output_kl": none_if_nan(samples["output_kl"].mean()),
        "visual_tokens": none_if_nan(samples["visual_tokens"].mean()),
        "failed": int(samples["failed"].notna().sum()),
    }


def none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def fill(
    folder: Path, plan: Plan, lm: Any, samples: pd.DataFrame, logits: np.ndarray | None, baseline: Result | None
) -> None:
    """Samples, logits and pictures of a record."""
    samples.to_parquet(folder / SAMPLES, index=False)
    if logits is not None:
        np.save(folder / LOGITS, logits)
    if plan.pictures:
        draw(folder / "pictures", plan, lm, samples, baseline)


def draw(folder: Path, plan: Plan, lm: Any, samples: pd.DataFrame, baseline: Result | None) -> None:
    """One picture an image, each with another task's question where there are several."""
    from eval.lmms_model import key, visuals
    from eval.pictures import draw_kept_tokens
    from eval.task_set import decode

    folder.mkdir()
    rows = samples.set_index(["task", "doc_id"])
    full = None if baseline is None else baseline.samples.set_index(["task", "doc_id"])["prediction"]
    for number, requests in enumerate(lm.pictured_requests):
        request = requests[number % len(requests)]
        row = lm.rows[key(request)]
        if row["failed"] or "trace" not in row:
            continue
        at = key(request)[:2]
        draw_kept_tokens(
            as_seen(lm.llava, decode(visuals(request, lm.task_dict))),
            lm.llava.tower.grid,
            row["index"],
            rows.loc[at, "question"],
            row["text"],
            None if full is None else full.loc[at],
            rows.loc[at, "target"],
            f"{plan.label}, {plan.budget} of {lm.llava.visual_tokens} visual tokens",
            row["trace"],
            folder / f"{at[0]}-{at[1]}.png",
        )


def as_seen(llava: Any, image: Any) -> Any:
    """The picture as the tower sees it (resized, cropped or padded), so that the patch grid covers it."""
    from PIL import Image

    processor = llava.processor.image_processor
    pixels = llava.pixels([image])[0].float().cpu().permute(1, 2, 0).numpy()  # (H, W, 3) normalised
    values = pixels * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    return Image.fromarray((255 * values).round().clip(0, 255).astype(np.uint8))
