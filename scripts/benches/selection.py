"""Time of the selection step alone, beside the official codes: `python scripts/bench.py selection`.

Writes results/embedded/bench/selection.json and selection.md. The official figures (`official_cpu_ms.csv`) come from
another machine: they are multiplied by the ratio of one yardstick, DivPrune's arithmetic written plainly for an image
(a product of 576 x 1024 features, top-2, 16 steps of gathering and an argmax), timed here and there (7.83 ms). The
yardstick is timed next to each method, so that a busy machine slows both. Features are ready tensors: no tower runs;
of a method inside the tower only the last step (after the last block) is timed; ToMe's is the whole iteration.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pruning
from pruning import Pruner, Question, VisualTokens
from pruning.decoder import DecoderPruner

HERE, OUT = Path(__file__).parent, Path("results/embedded/bench")
WIDTH, HEADS = 1024, 16
YARDSTICK_MS = 7.83  # official DivPrune, K = 16, on the machine of official_cpu_ms.csv
PLACES = ((1, (24, 24)), (32, (24, 24)), (1, (48, 60)))  # batch, grid; 2880 tokens = five crops at once


def inputs(batch: int, grid: tuple[int, int]) -> tuple[VisualTokens, Question]:
    """Smooth random images with every feature of the tower as a tensor, (B, n, 1024)."""
    n, g = grid[0] * grid[1], torch.Generator().manual_seed(0)
    mixing = torch.randn(batch, n, 9, generator=g).mul(2).softmax(-1)
    x = mixing @ torch.randn(9, WIDTH, generator=g) + 0.35 * torch.randn(batch, n, WIDTH, generator=g)
    attention = torch.randn(batch, HEADS, n, generator=g).softmax(-1)
    rolled, cls = x.roll(1, 2), x.mean(1)
    features: dict[str, Tensor] = {name: rolled for name in ("keys", "values", "next_keys", "projected", "clip")}
    features |= {name: cls for name in ("cls_value", "cls_next_key", "cls_next_query")}
    features["cls_attention"] = attention
    text = torch.randn(batch, 12, WIDTH, generator=g)
    real = torch.ones(batch, 12, dtype=torch.bool)
    index, seed = torch.arange(n).expand(batch, -1), torch.arange(batch)
    return VisualTokens(x, index, grid, cls=cls, seed=seed, features=features), Question(
        text, real, real, text[:, :2]
    )


def yardstick(x: Tensor) -> None:
    """x (576, 1024): DivPrune for K = 16 as one would write it first."""
    u = x / x.norm(dim=1, keepdim=True)
    distance = 1 - u @ u.T
    picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(picks) < 16:
        picks.append(int(distance[picks].amin(0).argmax()))


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def quartiles(values: list[float]) -> list[float]:
    return torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()


def measure(
    method: Pruner, tokens: VisualTokens, question: Question, repeats: int, plain: Tensor
) -> dict[str, float]:
    """Median and quartiles an image, and the machine's slowness (yardstick here / there) at the same moments."""
    method.finish(tokens, question)
    mine, scale = [], []
    for _ in range(repeats):
        scale.append(milliseconds(lambda: yardstick(plain)) / YARDSTICK_MS)
        mine.append(milliseconds(lambda: method.finish(tokens, question)) / len(tokens.hidden))
    low, middle, high = quartiles(mine)
    return {"ms": middle, "q1": low, "q3": high, "scale": quartiles(scale)[1]}


def table(rows: list[dict]) -> str:
    head = "| method | K | batch | N | ms an image (quartiles) | official here | ours / official |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        known = r["official_ms"] is not None
        beside = f"{r['official_ms']:.2f} | {r['ms'] / r['official_ms']:.2f}" if known else "- | -"
        spread = f"{r['ms']:.2f} ({r['q1']:.2f} - {r['q3']:.2f})"
        lines.append(f"| {r['method']} | {r['k']} | {r['batch']} | {r['n']} | {spread} | {beside} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.py selection", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="the official figures are for 1")
    parser.add_argument("--methods", nargs="*", default=pruning.names())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    official = {
        (r["method"], int(r["k"])): float(r["ms"]) for r in csv.DictReader((HERE / "official_cpu_ms.csv").open())
    }
    plain, rows = inputs(1, (24, 24))[0].hidden[0], []
    for batch, grid in PLACES:
        tokens, question = inputs(batch, grid)
        for name in args.methods:
            for k in (64, 16):
                method = pruning.load(name, k)
                if method.resizes_image or isinstance(method, DecoderPruner):
                    continue  # chooses before the tower or inside the language model: no selection step here
                repeats = args.repeats if batch == 1 else max(3, args.repeats // 2)
                row = measure(method, tokens, question, repeats, plain)
                theirs = official.get((name, k)) if tokens.patches == 576 else None
                scaled = None if theirs is None else theirs * row["scale"]
                rows.append(
                    {"method": name, "k": k, "batch": batch, "n": tokens.patches, **row, "official_ms": scaled}
                )
    OUT.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "threads": args.threads, "repeats": args.repeats}
    (OUT / "selection.json").write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    (OUT / "selection.md").write_text(table(rows))
    print(table(rows))
