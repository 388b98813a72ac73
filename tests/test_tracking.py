"""What `tracking=wandb` writes offline, read back."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from PIL import Image
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from eval import tracking
from eval.report import write_report
from scripts.benches._records import write_sweep
from tests.sandbox import call

OFFLINE = {"name": "wandb", "project": "dcp-prune", "mode": "offline"}


def read_run(folder):
    """Config, summary and history (nested names joined by /) of the one offline run below `folder`, and its files."""
    wandb.teardown()  # the writer is a process of its own; this waits until the file is whole
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read(path), path.parent / "files"


def read(path):
    """Name, config, summary and history of a run's file."""
    store, found = DataStore(), {"name": "", "config": {}, "summary": {}, "history": {}}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        found["name"] = record.run.display_name or found["name"]
        updates = {
            "config": record.run.config.update,
            "summary": record.summary.update,
            "history": record.history.item,
        }
        for name, items in updates.items():
            for item in items:
                found[name]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    write_sweep(folder, {"random": 0.1, "visionzip": 0.5, "acgr_tatcs": 0.9}, (16, 64), images=12, each=2)
    return folder


def test_a_point_is_one_run_with_its_scores_config_samples_and_pictures(folder, tmp_path):
    place = folder / "mini" / "test" / "visionzip" / "16"
    (place / "config.yaml").write_text("config: {budget: 16}\n")
    (place / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(place / "pictures" / "one.png")
    metrics = {"method": "visionzip", "budget": 16, "model": "mini", "split": "test", "average": 61.5,
               "tasks": {"mini_pope": {"n": 24, "score": 71.25}}, "shift": {"gaussian_kl": 0.625}}  # fmt: skip
    samples = pd.read_parquet(place / "samples.parquet")
    plan = SimpleNamespace(tracking=OFFLINE, out=tmp_path)
    tracking.log_point(SimpleNamespace(plan=plan, folder=place, metrics=metrics, samples=samples))
    found, files = read_run(tmp_path)
    assert found["summary"]["average"] == 61.5 and found["config"]["config"] == {"budget": 16}
    assert found["summary"]["tasks/mini_pope/score"] == 71.25 and found["summary"]["shift/gaussian_kl"] == 0.625
    assert found["history"]["pictures/one/_type"] == "image-file"
    table = json.loads((files / found["history"]["samples/path"]).read_text())
    assert len(table["data"]) == len(samples) and "shift_gaussian_kl" in table["columns"]


def test_a_sweep_is_one_run_with_correlations_scatter_and_figures(folder):
    write_report(folder)
    tracking.log_sweep(folder, OFFLINE)
    found, files = read_run(folder)
    table = pd.read_csv(folder / "shift_correlation.csv")
    expected = tracking.correlations(table)
    assert len(expected) > 20
    assert {key: found["summary"][f"correlation/{key}"] for key in expected} == pytest.approx(expected)
    for file in (folder / "figures").glob("*.png"):
        logged = files / found["history"][f"figures/{file.stem}/path"]
        assert logged.read_bytes() == file.read_bytes()
    points = pd.read_csv(folder / "points.csv").query("method != 'vanilla'")
    scatter = json.loads((files / found["history"]["shift_accuracy_table/path"]).read_text())
    drawn = pd.DataFrame(scatter["data"], columns=scatter["columns"])
    assert list(drawn["accuracy"]) == pytest.approx(list(points["accuracy"]))
    assert list(drawn["gaussian_kl"]) == pytest.approx(list(points["gaussian_kl"])) and len(drawn) == 6
    logged = json.loads((files / found["history"]["shift_correlation/path"]).read_text())
    logged = pd.DataFrame(logged["data"], columns=logged["columns"])
    assert list(logged["value"]) == pytest.approx(list(table["value"]), nan_ok=True)


def test_a_real_sweep_leaves_a_run_a_point_and_one_for_itself(tmp_path):
    out, words = tmp_path / "out", ["budget=16,32", "method=uniform,random", "pictures=1", "tracking=wandb"]
    assert call("-m", *words, "limit=6", f"out={out}") == 0
    wandb.teardown()
    runs = {run["name"]: run for run in map(read, out.glob("wandb/offline-run-*/*.wandb"))}
    points = {f"mini-test-first6-{method}-{budget}" for method in ("uniform", "random") for budget in (16, 32)}
    assert set(runs) == points | {"sweep-out"}
    metrics = json.loads((out / "mini" / "test-first6" / "uniform" / "16" / "metrics.json").read_text())
    logged = runs["mini-test-first6-uniform-16"]["summary"]
    assert logged["average"] == pytest.approx(metrics["average"])
    assert logged["shift/gaussian_kl"] == pytest.approx(metrics["shift"]["gaussian_kl"])
    assert logged["tasks/mini_gqa/score"] == metrics["tasks"]["mini_gqa"]["score"]
    expected = tracking.correlations(pd.read_csv(out / "shift_correlation.csv"))
    assert len(expected) > 20
    summary = runs["sweep-out"]["summary"]
    assert {key: summary[f"correlation/{key}"] for key in expected} == pytest.approx(expected)
