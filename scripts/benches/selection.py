"""Time of the selection step alone, beside the official codes: `python scripts/bench.py selection`.

Writes results/embedded/bench/selection.json and selection.md. One thread, CPU time (on a quiet machine the same as
wall time; other jobs disturb it less), repeats interleaved over all methods. Features are ready tensors: no tower and
no language model runs. Of a method inside the tower only the last step (after the last block) is timed, ToMe's is the
whole iteration; of a method inside the language model one stage: raters, ranking of ready attention rows, and what
leaves or merges (the official figures include making those rows).

The official figures (`official_cpu_ms.csv`) come from another machine. They are brought here by two yardsticks that
were timed there too, here next to each repeat of each method: `matrix`, DivPrune for an image as one would write it
first, and `top-K`, FlowCut's score, entropy and plain top-K of one row. `floor` is the time here of the products of
token pairs that the rule cannot do without (column `pairs` of the csv: their share of all n x n), as one product.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import pruning
from pruning import Pruner, Question, VisualTokens
from pruning.decoder import DecoderPruner, Look
from scripts.benches._report import parser, quartiles, save

HERE = Path(__file__).parent
WIDTH, HEADS, WORDS = 1024, 16, 12
PLACES = ((1, (24, 24), 9), (32, (24, 24), 3), (1, (48, 60), 3))  # batch, grid, repeats; 2880: five crops at once


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
    text = torch.randn(batch, WORDS, WIDTH, generator=g)
    real = torch.ones(batch, WORDS, dtype=torch.bool)
    index, seed = torch.arange(n).expand(batch, -1), torch.arange(batch)
    return VisualTokens(x, index, grid, cls=cls, seed=seed, features=features), Question(
        text, real, real, text[:, :2]
    )


# --- yardsticks: work that was timed on the official figures' machine, written plainly for one image ------------
def matrix(x: Tensor, row: Tensor) -> None:
    """DivPrune for K = 16 of x (576, 1024)."""
    u = x / x.norm(dim=1, keepdim=True)
    distance = 1 - u @ u.T
    picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(picks) < 16:
        picks.append(int(distance[picks].amin(0).argmax()))


def top_k(x: Tensor, row: Tensor) -> None:
    """FlowCut's score, entropy and top-K of one layer, from rows (576,)."""
    share = row / row.sum()
    score = (share + row / row.sum()) * row
    surplus = (576 - 64) / 20**0.5 * (1 - (-(share * share.log()).sum() / torch.log(torch.tensor(576.0))) ** 2)
    score.topk(max(576 - int(surplus.round()), 64)).indices.sort()


YARDSTICKS = {"matrix": (matrix, 7.83), "top-K": (top_k, 0.10)}  # with the ms there


# --- measuring --------------------------------------------------------------------------------------------------
def work_of(method: Pruner, k: int, tokens: VisualTokens, question: Question) -> Callable[[], object]:
    """The step that is timed."""
    if not isinstance(method, DecoderPruner):
        return lambda: method.finish(tokens, question)
    rows = tokens.cls_attention[:, :, None].expand(-1, -1, WORDS if method.text_rows else 1, -1).contiguous()

    def stage() -> object:
        asking = torch.ones(rows.shape[0], rows.shape[2], dtype=torch.bool)
        if method.text_rows:
            asking = method.askers(tokens.hidden, question.embeddings, question.mask)
        return method.shrink(tokens.hidden, method.rank(Look(rows, asking, lambda: torch.ones(1, 1, 1))), k)

    return stage


def milliseconds(work: Callable[[], object], warm: bool = True) -> float:
    """Of one call; `warm` calls once before, as the official figures come from calls in a row."""
    if warm:
        work()
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


@torch.no_grad()
def measure(batch: int, grid: tuple[int, int], repeats: int, names: list[str]) -> list[dict]:
    """Rows of one place: median and quartiles an image, and how slow the machine was at the same moments."""
    tokens, question = inputs(batch, grid)
    plain, attention = inputs(1, (24, 24))[0].hidden[0], tokens.cls_attention[0, 0, :576].contiguous()
    works, taken = {}, {}
    for name in names:
        for k in (64, 16):
            method = pruning.load(name, 576 if isinstance(pruning.load(name, k), DecoderPruner) else k)
            if not method.resizes_image:  # `downsample` acts before the tower: nothing is selected here
                works[name, k] = work_of(method, k, tokens, question)
                works[name, k]()
    sticks = [(partial(stick, plain, attention), there) for stick, there in YARDSTICKS.values()]
    for key in [*works] * repeats:
        scales = [milliseconds(stick) / there for stick, there in sticks]
        taken.setdefault(key, []).append((milliseconds(works[key], warm=batch == 1) / batch, *scales))
    rows = []
    for (name, k), found in taken.items():
        own, *scales = ([*column] for column in zip(*found))
        low, middle, high = quartiles(own)
        place = {"method": name, "k": k, "batch": batch, "n": tokens.patches}
        scale = {stick: quartiles(values)[1] for stick, values in zip(YARDSTICKS, scales)}
        rows.append({**place, "ms": middle, "q1": low, "q3": high, "scale": scale})
    return rows


def compare(rows: list[dict], product_ms: float) -> None:
    """Adds what the official code would take here, by each yardstick, and the floor; None without a figure."""
    lines = csv.DictReader((HERE / "official_cpu_ms.csv").open())
    known = {(line["method"], int(line["k"]), 576): line for line in lines}
    for row in rows:
        line = known.get((row["method"], row["k"], row["n"]))
        row["floor"] = float(line["pairs"]) * product_ms if line and line["pairs"] else None
        scale = row.pop("scale")
        row["official"] = {s: float(line["ms"]) * scale[s] if line else None for s in YARDSTICKS}


# --- showing ----------------------------------------------------------------------------------------------------
def table(rows: list[dict], product_ms: float) -> str:
    sticks = "".join(f" official here, {s} | ratio |" for s in YARDSTICKS)
    lines = [f"| method | K | batch | N | ms an image (quartiles) | floor |{sticks}", "| --- " * 10 + "|"]
    for r in rows:
        floor = "-" if r["floor"] is None else f"{r['floor']:.2f}"
        beside = [f"{ms:.2f} | {r['ms'] / ms:.2f}" if ms else "- | -" for ms in r["official"].values()]
        cells = [r["method"], r["k"], r["batch"], r["n"], f"{r['ms']:.2f} ({r['q1']:.2f} - {r['q3']:.2f})", floor]
        lines.append(f"| {' | '.join(map(str, [*cells, *beside]))} |")
    note = f"One product of all 576 x 576 pairs here: {product_ms:.2f} ms."
    return "\n".join([*lines, "", *goals(rows), "", note, ""])


def goals(rows: list[dict]) -> list[str]:
    """Who misses the goals: batch 1 no slower than the official code, batch 32 at most a quarter of it an image."""
    out = []
    for stick in YARDSTICKS:
        for batch, limit in ((1, 1.0), (32, 0.25)):
            asked = [r for r in rows if r["batch"] == batch and r["official"][stick]]
            ratios = {f"{r['method']} K={r['k']}": r["ms"] / r["official"][stick] for r in asked}
            missed = ", ".join(f"{name} ({ratio:.2f})" for name, ratio in ratios.items() if ratio > limit)
            out.append(f"- batch {batch}, {stick} scale, at most {limit:g}: missed by {missed or 'none'}")
    return out


def main(arguments: list[str]) -> None:
    options = parser("selection", __doc__.splitlines()[0])
    options.add_argument("--methods", nargs="*", default=pruning.names())
    args = options.parse_args(arguments)
    torch.set_num_threads(1)  # as the official figures
    rows = [row for place in PLACES for row in measure(*place, args.methods)]
    x = torch.randn(576, WIDTH)
    product_ms = quartiles([milliseconds(lambda: x @ x.T) for _ in range(15)])[1]
    compare(rows, product_ms)
    about = {"threads": 1, "repeats": [p[2] for p in PLACES], "product_ms": product_ms}
    save("selection", about | {"rows": rows}, table(rows, product_ms), args.out)
