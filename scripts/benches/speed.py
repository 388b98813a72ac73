"""Where the time goes: stages of the embedded model, the real shapes, the roofline of a GPU.

    python scripts/bench.py speed                 about 4 minutes on 2 cores
    python scripts/bench.py speed --methods acgr flowcut --budgets 16 32 128
    python scripts/bench.py speed --skip real     without the 7B shapes (which want 3 GB)

Writes results/embedded/bench/speed.json, speed.md and speed.png.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from pathlib import Path
from typing import Any

import torch

import pruning
from pruning.decoder import DecoderPruner
from scripts.benches import _counts, _embedded, _real_size
from scripts.benches._report import parser, quartiles, save

METHODS, BUDGETS = ("acgr_tatcs", "cls_attention", "visionzip", "fastv"), (16, 64, 192)


def points(llava: Any, methods: list[str], budgets: list[int]) -> list[tuple[str, int]]:
    """Methods and budgets of the embedded part, the unpruned model first; without budgets that a method refuses."""
    chosen = [("vanilla", 576)]
    for name, k in itertools.product(methods, budgets):
        method = pruning.load(name, k)
        with contextlib.suppress(pruning.InputError):  # inside the language model, early layers need every token
            if isinstance(method, DecoderPruner):
                method.plan(len(llava.language.layers), llava.visual_tokens)
            chosen.append((name, k))
    return chosen


def embedded(args: argparse.Namespace) -> dict:
    """Stages on the embedded model."""
    from scripts.benches.loop import questions

    llava = _embedded.load_mini()
    visual, asked = questions("test", max(args.batch))
    return {
        "rows": _embedded.measure(
            llava, visual, asked, points(llava, args.methods, args.budgets), args.batch, args.repeats
        )
    }


def real(args: argparse.Namespace) -> dict:
    """The 7B shapes."""
    from scripts.benches._shapes import llava_7b

    return _real_size.judge(_real_size.measure(llava_7b(), pruning.names(), max(2, args.repeats // 2)))


def total(row: dict) -> float:
    """Median milliseconds an image of all that answering takes (scoring and shift metrics aside)."""
    stages = [v for name, v in row["ms"].items() if name not in ("scoring", "shift")]
    return quartiles([sum(parts) for parts in zip(*stages)])[1]


def table(result: dict) -> str:
    """All parts as markdown."""
    parts = []
    if "embedded" in result:
        names = _embedded.STAGES
        parts += ["Embedded model, milliseconds an image: median (interquartile range) over interleaved repeats."]
        parts += ["All: the stages but scoring (of a given answer instead of decoding) and the shift metrics."]
        parts += ["GMAC to peak (of tensors, weights aside): one image with one question, without shift metrics."]
        parts += ["A budget that a method cannot reach (inside the language model) is left out.", ""]
        head = ["method", "tokens", "batch", "all", *names, "GMAC", "GFLOP", "KV kB", "peak MB"]
        parts += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
        for row in result["embedded"]["rows"]:
            spread = [quartiles(row["ms"][name]) for name in names]
            cells = [f"{m:.1f} ({h - low:.1f})" for low, m, h in spread]
            facts = [f"{row['gmac']:.2f}", f"{row['gflop']:.2f}"]
            facts += [f"{row['kv_bytes'] / 1e3:.0f}", f"{row['peak_bytes'] / 1e6:.1f}"]
            first = [row["method"], f"{row['visual_tokens']:g}", str(row["batch"]), f"{total(row):.1f}"]
            parts.append("| " + " | ".join([*first, *cells, *facts]) + " |")
        parts += ["", *break_even(result["embedded"]["rows"])]
    if "real" in result:
        parts += ["", *real_table(result["real"])]
    parts += ["", "7B prefill in bfloat16 on an H100 by its data sheet: a roofline model's figures, nothing was run."]
    parts += ["", "| visual tokens | prompt | TFLOP | GB moved | least ms |", "| --- | --- | --- | --- | --- |"]
    for k, r in result["roofline"].items():
        parts.append(f"| {k} | {r['tokens']} | {r['tflop']:.2f} | {r['gigabytes']:.1f} | {r['roofline_ms']:.2f} |")
    peak = result["peak_memory_mb"]
    parts += ["", f"Peak memory of the whole bench: {peak:.0f} MB; {result['threads']} threads, float32."]
    return "\n".join(parts).strip() + "\n"


def break_even(rows: list[dict]) -> list[str]:
    """For each method and batch size, up to which of the measured budgets it is faster than the unpruned model."""
    full = {row["batch"]: total(row) for row in rows if row["method"] == "vanilla"}
    lines = [
        "| method | batch | faster than unpruned up to (of the budgets above) | times as fast at its least budget |",
        "| --- " * 4 + "|",
    ]
    for name, batch in dict.fromkeys((row["method"], row["batch"]) for row in rows if row["method"] != "vanilla"):
        own = {row["budget"]: total(row) for row in rows if (row["method"], row["batch"]) == (name, batch)}
        pays = list(itertools.takewhile(lambda k, own=own, batch=batch: own[k] < full[batch], sorted(own)))
        lines.append(f"| {name} | {batch} | {max(pays, default='-')} | {full[batch] / own[min(own)]:.2f} |")
    return lines


def real_table(found: dict) -> list[str]:
    """The 7B shapes."""
    time, work = 100 * found["cls_time_share"], 100 * found["cls_mac_share"]
    lines = [
        "Shapes of LLaVA-1.5-7B, random weights, this CPU, one image: two decoder layers measured, times 16 for 32.",
        f"Unpruned {found['unpruned']:.1f} s, of which tower {found['tower']:.1f} s.",
        f"The CLS row costs {time:.2f} % of its block's time and {work:.2f} % of its MACs.",
        "Selection holds what a method reads beside the states: the CLS row, keys, and where it compares projected",
        "tokens the projector on all 576. Methods in front of the language model; inside it selection is a part of",
        "the prefill, of which two layers show nothing.",
        "",
        "| method at 16 | tower s | selection ms | saved s | selection / saved | pays below |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, own in found["methods"].items():
        share = "-" if own["share"] is None else f"{100 * own['share']:.2f} %"
        tower = own["tower"][1] or found["tower"]
        chosen, limit = 1000 * own["selection"][1], own["break_even"]
        lines.append(f"| {name} | {tower:.2f} | {chosen:.1f} | {own['saved']:.1f} | {share} | {limit or '-'} |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Stacked bars of the stages, one panel a batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["embedded"]["rows"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    figure, axes = plt.subplots(1, len(batches), figsize=(4.2 * len(batches), 0.32 * len(rows) / len(batches) + 1.4),
                                sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    shown = [name for name in _embedded.STAGES if name not in ("scoring", "shift")]
    for ax, batch in zip(axes[0], batches):
        own = [row for row in rows if row["batch"] == batch]
        left = torch.zeros(len(own))
        for at, stage in enumerate(shown):
            width = torch.tensor([quartiles(row["ms"][stage])[1] for row in own])
            ax.barh(range(len(own)), width, left=left, label=stage, color=plt.get_cmap("tab10")(at))
            left = left + width
        ax.set_title(f"batch {batch}", fontsize=10)
        ax.set_xlabel("ms an image (medians)")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(own)), [f"{row['method']}  {row['visual_tokens']:.3g}" for row in own])
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)


def main(arguments: list[str]) -> None:
    from eval import facts

    options = parser("speed", __doc__.splitlines()[0])
    options.add_argument("--methods", nargs="*", default=METHODS, choices=pruning.names())
    options.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    options.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--skip", nargs="*", default=[], choices=("embedded", "real"))
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"threads": args.threads, "repeats": args.repeats}
    for name, part in (("embedded", embedded), ("real", real)):
        if name not in args.skip:
            result[name] = part(args)
    result["roofline"] = {k: _counts.prefill_7b(_real_size.TEXT + k) for k in (576, 192, 64, 16)}
    result["peak_memory_mb"] = facts.peak_memory_mb()
    save("speed", result, table(result), args.out)
    if "embedded" in result:
        draw(result, args.out / "speed.png")
