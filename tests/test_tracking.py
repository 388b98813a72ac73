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
from tests.synthetic_sweep import write_sweep

OFFLINE = {"name": "wandb", "project": "dcp-prune", "mode": "offline"}


def read_run(folder):
    """Config, summary and history (nested names joined by /) of the one offline run below `folder`, and its files."""
    wandb.teardown()  # the writer is a process of its own; this waits until the file is whole
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    store, found = DataStore(), {"config": {}, "summary": {}, "history": {}}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        updates = {
            "config": record.run.config.update,
            "summary": record.summary.update,
            "history": record.history.item,
        }
        for name, items in updates.items():
            for item in items:
                found[name]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found, path.parent / "files"


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
    write_report(folder, figures=False)
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "figures" / "accuracy_budget.png")
    tracking.log_sweep(folder, OFFLINE)
    found, files = read_run(folder)
    table = pd.read_csv(folder / "shift_correlation.csv")
    expected = tracking.correlations(table)
    assert len(expected) > 20
    assert {key: found["summary"][f"correlation/{key}"] for key in expected} == pytest.approx(expected)
    assert found["history"]["figures/accuracy_budget/_type"] == "image-file"
    scatter = json.loads((files / found["history"]["shift_accuracy_table/path"]).read_text())
    assert len(scatter["data"]) == 6
    logged = json.loads((files / found["history"]["shift_correlation/path"]).read_text())
    assert len(logged["data"]) == len(table)
