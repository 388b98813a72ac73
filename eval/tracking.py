"""Weights & Biases beside the files (`tracking=wandb`): one run a point, and one for the sweep.

Offline by default: the runs lie in `<out>/wandb/`, and `wandb sync <out>/wandb/offline-run-*` sends them later.
Everything logged is read from the record folders, so nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from eval.sweep import VANILLA
from eval.tables import KAPPA
from pruning.errors import InputError

if TYPE_CHECKING:
    from eval.point import Result

ROWS = 200  # samples shown in a point's table
SHOWN = ["task", "question_id", "type", "question", "target", "prediction", "score", "failed", "visual_tokens"]


def log_point(result: Result) -> None:
    """One run: every score, shift and time of a finished point, its config, some samples, its pictures."""
    plan, metrics = result.plan, result.metrics
    name = f"{metrics['model']}-{metrics['split']}-{result.folder.parent.name}-{metrics['budget']}"
    with run(plan.tracking, Path(plan.out), name, "point", read_config(result.folder)) as (wandb, log):
        samples = result.samples
        columns = [c for c in samples if c in SHOWN or str(c).startswith("shift_") or c == "output_kl"]
        shown = samples[columns].head(ROWS).astype(object)
        shown = shown.where(shown.notna(), None)
        media = {"samples": wandb.Table(columns=columns, data=shown.to_numpy().tolist())}
        for path in sorted((result.folder / "pictures").glob("*.png")):
            media[f"pictures/{path.stem}"] = wandb.Image(str(path))
        log.log(media)
        log.summary.update(flat(metrics))


def log_sweep(folder: str | Path, tracking: Mapping[str, Any]) -> None:
    """One run for the sweep: the report's tables, shift against accuracy as a scatter, the figures.

    `tracking` is the chosen configs/tracking file; `folder` is where `report.write_report` has written.
    """
    folder = Path(folder)
    with run(tracking, folder, f"sweep-{folder.name}", "sweep", {"folder": folder.name}) as (wandb, log):
        names = ("summary", "points", "shift_correlation", "tests", "paper")
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in names if (folder / f"{name}.csv").is_file()}
        media: dict[str, Any] = {name: wandb.Table(dataframe=table) for name, table in tables.items()}
        if "shift_correlation" in tables:
            known = correlations(tables["shift_correlation"])
            log.summary.update({f"correlation/{key}": value for key, value in known.items()})
        if KAPPA in tables["points"]:
            table = tables["points"].dropna(subset=[KAPPA, "accuracy"])
            table = wandb.Table(dataframe=table[table["method"] != VANILLA])
            title = "Distribution shift against accuracy"
            media["shift_accuracy"] = wandb.plot.scatter(table, KAPPA, "accuracy", title=title)
        for path in sorted((folder / "figures").rglob("*.png")):
            media[f"figures/{path.relative_to(folder / 'figures').with_suffix('').as_posix()}"] = wandb.Image(
                str(path)
            )
        log.log(media)


@contextmanager
def run(tracking: Mapping[str, Any], out: Path, name: str, kind: str, config: Any) -> Iterator[tuple[Any, Any]]:
    """The wandb module and an open run of it; finished on the way out.

    Raises:
        InputError: wandb is missing, or refuses to start (online without a login).
    """
    try:
        import wandb  # slow, and only wanted here
    except ModuleNotFoundError as error:
        raise InputError("tracking=wandb needs wandb; install it or choose tracking=none") from error
    out.mkdir(parents=True, exist_ok=True)
    try:
        log = wandb.init(
            project=tracking["project"], mode=tracking["mode"], dir=str(out), name=name, job_type=kind, config=config,
            reinit="finish_previous", settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise InputError(f"wandb does not start: {error}; tracking.mode=offline needs no account") from error
    try:
        yield wandb, log
    finally:
        log.finish()


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json by name: average, tasks/<task>/score, shift/<metric>, seconds/<stage>, ..."""
    out: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            out |= {f"{key}/{name}": number for name, number in flat(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[key] = value
    return out


def correlations(table: pd.DataFrame) -> dict[str, float]:
    """shift_correlation.csv as <model>/<split>/<scope>/<metric>/<kind> -> coefficient, where it is defined."""
    keys = table[["model", "split", "scope", "metric", "kind"]].astype(str).agg("/".join, axis=1)
    return {key: float(value) for key, value in zip(keys, table["value"]) if pd.notna(value)}


def read_config(folder: Path) -> Any:
    """The point's config.yaml."""
    return yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").is_file() else {}
