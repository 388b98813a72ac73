"""The table that a single run prints, of one point (`tables` are a sweep's)."""

from __future__ import annotations

from math import isfinite

from eval.official import in_words
from eval.outcome import Result
from eval.scores import average_percent
from eval.statistics import score_interval


def render(result: Result) -> str:
    """Task, n, score with its interval, unpruned score, ratio; then averages, tokens, times and places."""
    metrics, base = result.metrics, result.baseline
    lines = [["task", "n", "score", "95 % interval", "unpruned", "ratio"]]
    for task, values in metrics["tasks"].items():
        low, high = score_interval(result.samples[result.samples["task"] == task], seed=result.plan.seed)
        ends = f"{low:.1f} to {high:.1f}" if isfinite(low) else "-"  # of one image
        row = [task, str(values["n"]), f"{values['score']:.1f}", ends]
        full = values["score"] if base is None else base.metrics["tasks"][task]["score"]
        ratio = f"{100 * values['score'] / full:.1f} %" if full else "-"
        lines.append([*row, f"{full:.1f}", ratio])
    return "\n".join([title(result), "", *columns(lines), "", *facts(result)])


def title(result: Result) -> str:
    """Method, budget, model and questions in one line."""
    plan, tokens = result.plan, result.metrics["visual_tokens"]
    kept = "no" if tokens is None else f"{tokens:g}"
    return f"{plan.label} on {plan.model}: {kept} visual tokens an image ({plan.subset} split)"


def facts(result: Result) -> list[str]:
    """The lines below the table."""
    metrics = result.metrics
    scores = {task: values["score"] for task, values in metrics["tasks"].items()}
    full = scores
    if result.baseline is not None:
        full = {task: values["score"] for task, values in result.baseline.metrics["tasks"].items()}
    kappa = metrics["shift"].get("gaussian_kl")
    if 0 in full.values():
        average = "-   (mean ratio to the unpruned model, which scores 0 in a task)"
    else:
        average = f"{average_percent(scores, full):.1f}   (mean ratio to the unpruned model)"
    out = [
        f"Avg %          {average}",
        f"kappa          {'-' if kappa is None else f'{kappa:.4f}'}   (shift of the kept tokens, lower is better)",
        f"visual tokens  {metrics['visual_tokens'] if metrics['visual_tokens'] is not None else '-'}",
        f"seconds        {seconds(metrics['seconds'])}",
    ]
    if "answers_of" in metrics:
        out.append("answers        taken over from the unpruned run, as are the seconds: nothing is pruned")
    elif result.baseline is not None and result.baseline.fresh:
        out.append(f"  unpruned     {seconds(result.baseline.metrics['seconds'])}")
    if metrics["failed"]:
        reasons = result.samples["failed"].dropna().value_counts()
        out.append(f"failed         {metrics['failed']} questions, counted as wrong; most often: {reasons.index[0]}")
    if metrics.get("resumed"):
        out.append(f"resumed        {metrics['resumed']:.0%} was answered before, the seconds are of the rest")
    shown = {task: in_words(task, values["metrics"]) for task, values in metrics["tasks"].items()}
    out += [f"{task:<15}{words}" for task, words in shown.items() if words]
    before = "" if result.fresh else "   (finished before; force=true repeats it)"
    out.append(f"record         {result.folder}{before}")
    pictures = result.folder / "pictures"
    if pictures.is_dir() and any(pictures.iterdir()):
        out.append(f"pictures       {pictures}")
    if result.baseline is not None:
        out.append(f"unpruned       {result.baseline.folder}")
    return out


def seconds(stages: dict[str, float]) -> str:
    """Stages by time, the longest first; what took less than 0.05 s is left out."""
    shown = sorted((item for item in stages.items() if item[1] >= 0.05), key=lambda item: -item[1])
    parts = " + ".join(f"{value:.1f} {name}" for name, value in shown)
    return f"{sum(stages.values()):.1f}" + (f" = {parts}" if parts else "")


def columns(rows: list[list[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide)))
        for row in rows
    ]
