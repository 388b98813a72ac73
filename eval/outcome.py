"""What a record holds, made from lmms-eval's answers: samples, metrics, first logits, pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval import facts
from eval.logits import Place, rows_of, write_npy
from eval.official import extra_metrics, image_name, measure, weights
from eval.records import LOGITS, SAMPLES, damage, write_samples
from eval.settings import Plan


@dataclass
class Result:
    """What a finished point holds."""

    plan: Plan
    folder: Path
    metrics: dict[str, Any]
    samples: pd.DataFrame
    baseline: Result | None = None  # the unpruned run of the same model and questions
    fresh: bool = True  # False: it was there already


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


def lookup(baseline: Result | None) -> Any:
    """Request -> first-token logits of the unpruned run, (V,) or None."""
    if baseline is None or not (baseline.folder / LOGITS).is_file():
        return lambda key: None
    import torch

    with damage(baseline.folder):
        read = rows_of(baseline.folder / LOGITS)
    at = {(t, d): row for row, (t, d) in enumerate(zip(baseline.samples["task"], baseline.samples["doc_id"]))}

    def logits(key: tuple[str, int, int]) -> Any:
        row = at.get(key[:2])
        return None if row is None else torch.from_numpy(read(row))

    return logits


def tabulate(found: dict[str, Any], lm: Any) -> tuple[pd.DataFrame, list[Place | None]]:
    """samples.parquet (record contract), and where the first logits of each row lie beside the journal."""
    from pruning.shift import METRICS

    rows: list[dict[str, Any]] = []
    places: list[Place | None] = []
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
                    "image_id": image_name(task, doc, int(sample["doc_id"])),
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
            places.append(row.get("logits"))
    table = pd.DataFrame(rows)
    table["output_kl"] = table["output_kl"].astype("float64")
    table["visual_tokens"] = table["visual_tokens"].astype("float64")
    table["weight"] = np.concatenate([weights(str(t), rows["type"]) for t, rows in table.groupby("task", sort=False)])
    return table, places


def text_or_none(value: Any) -> str | None:
    """A cell of text; a missing value stays missing."""
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
        numbers = {name: float(v) for name, v in given.items() if isinstance(v, int | float | np.floating)}
        tasks[str(task)] = {
            "n": len(rows),
            "score": task_score(rows),
            "stderr": none_if_nan(np.std(drawn)),
            "measure": measure(str(task)),
            "metrics": numbers | extra_metrics(str(task), rows, numbers),
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


def taken_over(plan: Plan, baseline: Result) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and samples of a point at the full budget: the unpruned run's, whose tokens and answers it has.

    What they were made with, and when, stays the unpruned run's too.
    """
    samples = baseline.samples.copy()
    answered = samples["failed"].isna() & samples["shift_gaussian_kl"].notna()  # not a continuation that was scored
    samples["output_kl"] = samples["output_kl"].mask(answered, 0.0)
    own = {"method": plan.method, "budget": plan.budget, "overrides": plan.overrides}
    kl = none_if_nan(samples["output_kl"].mean())
    full = f"{baseline.plan.method}/{baseline.plan.budget}"
    return baseline.metrics | own | {"answers_of": full, "output_kl": kl}, samples


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN: what was not measured is null."""
    return None if np.isnan(value) else float(value)


def fill(
    folder: Path, plan: Plan, lm: Any, samples: pd.DataFrame, places: list[Place | None], baseline: Result | None
) -> None:
    """Samples, logits and pictures of a record."""
    write_samples(folder / SAMPLES, samples)
    if any(places):
        write_npy(folder / LOGITS, lm.journal.logits.path, places)
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
    """The picture as the tower sees it (LLaVA-NeXT: its base crop), so that the patch grid covers it."""
    from PIL import Image

    processor = llava.processor.image_processor
    seen = llava.pixels([image])
    first = seen.crops[0][0] if hasattr(seen, "crops") else seen[0]
    pixels = first.float().cpu().permute(1, 2, 0).numpy()  # (H, W, 3) normalised
    values = pixels * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    return Image.fromarray((255 * values).round().clip(0, 255).astype(np.uint8))
