"""Which shift metric looks like the paper's kappa? Writes results/paper/kappa_shapes.md.

    python scripts/fit_paper_kappa.py

Three tables: kappa against accuracy in the paper's six digitised curves; the curves of each of our metrics on the
embedded model (results/embedded/curve, from experiment=shift_curve) beside the paper's; the same on CLIP-like
synthetic features. LLaVA's own features are needed to fit the curves themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pruning  # noqa: E402  (the repository's root is not a package on the path)
from pruning import Pruner, Question, VisualTokens  # noqa: E402
from pruning.sets import statistics  # noqa: E402
from pruning.shift import METRICS, all_shifts  # noqa: E402
from tests.golden_data.inputs import make  # noqa: E402

FOLDER = ROOT / "results" / "paper"
CURVE = ROOT / "results" / "embedded" / "curve" / "points.csv"
BUDGETS = tuple(range(10, 101, 5))
IMAGES, DEPTH, DRAWS = 8, 23, 2000
PAIRS = {"cls_attention": "visionzip", "acgr_tatcs": "dcp_prune"}  # our method -> the paper's nearest curve


# --- the paper's curves -----------------------------------------------------------------------------------------
def spearman(x: np.ndarray | pd.Series, y: np.ndarray | pd.Series) -> float:
    """Rank correlation; NaN where a draw leaves nothing to rank."""
    return float(spearmanr(x, y).statistic) if len(np.unique(x)) > 1 and len(np.unique(y)) > 1 else np.nan


def bootstrap(frame: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]) -> tuple[float, float]:
    """95 % percentile interval of a statistic over points drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = [statistic(frame.iloc[rng.integers(0, len(frame), len(frame))]) for _ in range(DRAWS)]
    return tuple(np.nanpercentile(drawn, [2.5, 97.5]))


def correlations(curves: pd.DataFrame) -> pd.DataFrame:
    """Spearman of kappa with accuracy: along each method's curve, and over all points."""

    def ranked(frame: pd.DataFrame) -> float:
        return spearman(frame["kappa"].to_numpy(), frame["pope_accuracy"].to_numpy())

    whole = curves.dropna()
    rows = []
    for name, frame in [*whole.groupby("method"), ("all points", whole)]:
        low, high = bootstrap(frame, ranked)
        rows.append({"method": name, "points": len(frame), "spearman": ranked(frame), "low": low, "high": high})
    return pd.DataFrame(rows)


def across_methods(curves: pd.DataFrame) -> tuple[float, float, int]:
    """Within a budget, does the method of less kappa answer better? Mean and least Spearman, and how many budgets."""
    held = [frame for _, frame in curves.dropna().groupby("budget") if len(frame) >= 4]
    values = [spearman(frame["kappa"].to_numpy(), frame["pope_accuracy"].to_numpy()) for frame in held]
    return float(np.mean(values)), float(np.max(values)), len(values)


# --- our metrics on synthetic features --------------------------------------------------------------------------
def scenes() -> tuple[VisualTokens, Question]:
    """CLIP-like features of `IMAGES` images, (B, 576, 64), and their questions."""
    arrays = [{name: torch.as_tensor(x) for name, x in make(seed).items()} for seed in range(IMAGES)]
    hidden, text = (torch.stack([a[name] for a in arrays]) for name in ("hidden", "text"))
    features = {
        "cls_attention": torch.stack([a["cls_attn"] for a in arrays])[:, :, 1:],
        "projected": torch.stack([a["projected"] for a in arrays]),
    }
    patches = hidden[:, 1:]
    tokens = VisualTokens(patches, torch.arange(patches.shape[1]).expand(IMAGES, -1), (24, 24), features=features)
    real = torch.ones(text.shape[:2], dtype=torch.bool)
    return tokens, Question(text, real, real)


def kept(method: Pruner, tokens: VisualTokens, question: Question) -> VisualTokens:
    """The method over a tower of `DEPTH` blocks that change nothing."""
    full = tokens
    for layer, keep in method.schedule(DEPTH, tokens.patches).items():
        tokens = method.reduce_at(layer, tokens, keep)
        rows = tokens.index[..., None].expand(-1, -1, full.projected.shape[2])
        tokens = replace(tokens, features={**tokens.features, "projected": full.projected.gather(1, rows)})
    return method.finish(tokens, question)


def measured() -> pd.DataFrame:
    """A row for each method, budget and metric: the mean over images."""
    tokens, question = scenes()
    known, rows = statistics(tokens.hidden), []
    for name in PAIRS:
        changed = {"trigger": "always"} if name == "acgr_tatcs" else {}
        for budget in BUDGETS:
            out = kept(pruning.load(name, budget, **changed), tokens, question)
            values = all_shifts(out.hidden, known)
            rows += [
                {"method": name, "budget": budget, "metric": m, "value": float(values[m].mean())} for m in METRICS
            ]
    return pd.DataFrame(rows)


def shape(budgets: np.ndarray, values: np.ndarray) -> str:
    """`falls`, `rises`, `no trend`, or `minimum at K`: the last value is over a tenth above an earlier minimum."""
    least = int(values.argmin())
    if max(values[0], values[-1]) <= 1.1 * values[least]:
        return "no trend"
    if least == 0:
        return "rises"
    return f"minimum at {budgets[least]}" if values[-1] > 1.1 * values[least] else "falls"


def log_error(ours: np.ndarray, paper: np.ndarray) -> float:
    """Root mean square of ln(ours / paper) after the best common scale."""
    apart = np.log(np.maximum(ours, 1e-9) / paper)
    return float(np.sqrt(np.mean((apart - apart.mean()) ** 2)))


def beside(values: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a metric: shape, fall and fit for each pair of `PAIRS`."""
    rows = []
    for metric in METRICS:
        row: dict[str, object] = {"metric": metric}
        for ours, theirs in PAIRS.items():
            mine = values[(values.method == ours) & (values.metric == metric)].set_index("budget")["value"]
            paper = curves[curves.method == theirs].set_index("budget")["kappa"].dropna()
            both = mine.loc[paper.index].to_numpy()
            row |= {
                f"{ours}: 10 -> 100": f"{mine.iloc[0]:.3g} -> {mine.iloc[-1]:.3g}",
                f"{ours}: shape": shape(mine.index.to_numpy(), mine.to_numpy()),
                f"{ours}: Spearman": f"{spearman(both, paper.to_numpy()):.2f}",
                f"{ours}: log error": f"{log_error(both, paper.to_numpy()):.2f}",
            }
        rows.append(row)
    return pd.DataFrame(rows)


# --- our metrics on the embedded model --------------------------------------------------------------------------
def embedded(points: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row a metric: how it goes with the paper's kappa at the same methods and budgets, the nearest first."""
    theirs = curves.assign(method=curves["method"].replace("dcp_prune", "acgr_tatcs")).dropna(subset="kappa")
    both = points.merge(theirs, on=["method", "budget"])
    rows = []
    for metric in (name for name in [*METRICS, "output_kl"] if name in points):
        within = [spearman(f[metric], f["kappa"]) for _, f in both.groupby("method")]
        between = [spearman(f[metric], f["kappa"]) for _, f in both.groupby("budget") if len(f) >= 4]
        fits = [log_error(f[metric].to_numpy(), f["kappa"].to_numpy()) for _, f in both.groupby("method")]
        curve = {name: f.sort_values("budget") for name, f in points.groupby("method")}
        rows.append({
            "metric": metric, "Spearman, all points": f"{spearman(both[metric], both['kappa']):.2f}",
            "within a method": f"{np.mean(within):.2f}", "between methods": f"{np.mean(between):.2f}",
            "log error within": f"{np.mean(fits):.2f}",
            "log error, one scale": f"{log_error(both[metric].to_numpy(), both['kappa'].to_numpy()):.2f}",
            **{f"shape for {name}": shape(curve[name]["budget"].to_numpy(), curve[name][metric].to_numpy())
               for name in ("acgr_tatcs", "prunesid") if name in curve},
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("log error, one scale", kind="stable")


def embedded_section(curves: pd.DataFrame) -> str:
    """The embedded model's part of the page; empty before the sweep's report is there."""
    if not CURVE.is_file():
        return ""
    points = pd.read_csv(CURVE)
    points = points[points["method"] != "vanilla"]
    return f"""
## Each metric on the embedded model
{len(points)} points of `experiment=shift_curve` (methods of the paper's figure, budgets {points["budget"].min()} to
{points["budget"].max()}, `mini_pope`), against the paper's kappa at the same method and budget. *Within a method*,
*between methods*: mean Spearman along a method's budgets, and over the methods at a budget. *Log error*: root mean
square of ln(ours / paper's) after the best scale of each curve, and after one scale for all. In the paper's figure
the curves of `acgr_tatcs` and `prunesid` have a minimum inside. The embedded tower is not CLIP-L: what agrees here
may agree there, what does not is not ruled out.

{table(embedded(points, curves))}
"""


# --- the page -----------------------------------------------------------------------------------------------------
def table(frame: pd.DataFrame) -> str:
    """Markdown of a frame of strings."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(curves: pd.DataFrame) -> str:
    """kappa_shapes.md."""
    found = correlations(curves)
    shapes = {
        name: shape(frame["budget"].to_numpy(), frame["kappa"].to_numpy())
        for name, frame in curves.dropna(subset="kappa").groupby("method")
    }
    paper = pd.DataFrame({
        "method": found["method"],
        "points": found["points"],
        "Spearman": found["spearman"].map("{:.3f}".format),
        "95 % interval": [f"{low:.3f} to {high:.3f}" for low, high in zip(found["low"], found["high"])],
        "shape of kappa": [shapes.get(name, "") for name in found["method"]],
    })  # fmt: skip
    mean, worst, count = across_methods(curves)
    return f"""# kappa: the paper's curves, and our candidates' shapes

Written by `python scripts/fit_paper_kappa.py`. Do not edit.

## kappa against POPE accuracy in the paper's figure
Rank correlation over budgets of 10 to 100 tokens; intervals from {DRAWS} bootstrap draws of the points (points of a
curve are not independent, so the intervals are too narrow). `minimum at K`: the last value is more than 10 % above
it. `no trend`: neither end is.

{table(paper)}

Between methods at one budget ({count} budgets with four methods or more): mean Spearman {mean:.2f}, weakest
{worst:.2f}.
{embedded_section(curves)}
## Each metric on synthetic features
{IMAGES} images of `tests/golden_data/inputs.py` (576 tokens, 64 dimensions), mean over images, budgets 10, 15, ...,
100; `acgr_tatcs` with `trigger=always` in a tower whose blocks change nothing. *Spearman* and *log error* (after the
best common scale) are against the paper's curve of VisionZip (for `cls_attention`: {shapes["visionzip"]}) and of
DCP-Prune (for `acgr_tatcs`: {shapes["dcp_prune"]}). These features are not CLIP's: a shape that appears here is
possible for the metric, one that does not is not ruled out, and no fit here says which metric the authors used.

{table(beside(measured(), curves))}
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = page(pd.read_csv(FOLDER / "pope_accuracy_kappa.csv"))
    (FOLDER / "kappa_shapes.md").write_text(text)
    print(text)
