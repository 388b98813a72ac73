"""The main job end to end on six small images, through run.py itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import eval.progress
from eval import lmms_model, point, tables
from eval.lmms_model import PrunedLlava
from eval.sweep import read_sweeps
from tests.sandbox import call, encoded, picture, refused, write_data

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [
    "task",
    "doc_id",
    "question_id",
    "image_id",
    "type",
    "pair_id",
    "question",
    "target",
    "prediction",
    "score",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_data(tmp_path_factory.mktemp("data"), [encoded(picture(i)) for i in range(6)])
    return f"tasks.data_dir={folder}"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """A finished run of cls_attention at 16 tokens on four images, two a batch."""
    folder = tmp_path_factory.mktemp("out")
    assert call(*words(data, folder)) == 0
    return folder


def words(data: str, out: Path, *more: str) -> list[str]:
    return ["budget=16", "method=cls_attention", "limit=4", "batch_size=2", "pictures=2", data, f"out={out}", *more]


def record(out: Path, method: str = "cls_attention", budget: int = 16) -> Path:
    return out / "mini" / "test-first4" / method / str(budget)


def load(folder: Path) -> tuple[dict, pd.DataFrame]:
    return json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "samples.parquet")


def timeless(metrics: dict) -> dict:
    changing = ("seconds", "resumed", "peak_memory_mb", "created", "commit")
    return {k: v for k, v in metrics.items() if k not in changing}


def same(a: Path, b: Path) -> None:
    """Two records are equal byte for byte, times aside."""
    assert timeless(load(a)[0]) == timeless(load(b)[0])
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    for name in names:
        assert name.name == "metrics.json" or (a / name).read_bytes() == (b / name).read_bytes(), name


def test_record_holds_the_contract(out: Path) -> None:
    metrics, samples = load(record(out))
    assert metrics["status"] == "finished" and metrics["method"] == "cls_attention" and metrics["budget"] == 16
    assert [v["n"] for v in metrics["tasks"].values()] == [4, 8, 4, 4, 4] and metrics["failed"] == 0
    assert list(samples.columns[:10]) == COLUMNS and len(samples) == 24
    assert all(len(set(x)) == 16 and list(x) == sorted(x) for x in samples["index"])
    assert (
        (samples.visual_tokens == 16).all()
        and samples.output_kl.ge(0).all()
        and samples.shift_gaussian_kl.gt(0).all()
    )
    assert len(list((record(out) / "pictures").glob("*.png"))) == 2
    full, unpruned = load(record(out, "vanilla", 576))
    assert (unpruned.visual_tokens == 576).all() and unpruned.output_kl.isna().all()
    assert np.load(record(out, "vanilla", 576) / "first_logits.npy").shape[0] == len(unpruned)
    assert str(out) not in (record(out) / "config.yaml").read_text() + json.dumps(metrics)
    assert not [p for p in out.rglob(".*")]  # neither journal nor lock is left
    assert full["average"] == pytest.approx(np.mean([v["score"] for v in full["tasks"].values()]))


def test_table(out: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words(data, out)) == 0
    shown = capsys.readouterr()
    assert f"{record(out)}   (finished before; force=true repeats it)" in shown.out and not shown.err
    metrics = load(record(out))[0]
    line = next(x for x in shown.out.splitlines() if x.startswith("mini_mme")).split()
    assert line[1] == "8" and line[2] == f"{metrics['tasks']['mini_mme']['score']:.1f}" and line[4] == "to"
    assert f"kappa          {metrics['shift']['gaussian_kl']:.4f}" in shown.out
    for name in (
        "Avg %          -   (mean ratio to the unpruned model, which scores 0 in a task)",
        "visual tokens  16",
        "seconds",
        str(record(out)),
        str(record(out) / "pictures"),
    ):
        assert name in shown.out


def test_the_full_budget_takes_over_the_unpruned_answers(
    out: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words(data, out, "method=uniform", "budget=576")) == 0
    assert "taken over from the unpruned run" in capsys.readouterr().out
    metrics, samples = load(record(out, "uniform", 576))
    full, unpruned = load(record(out, "vanilla", 576))
    assert metrics["method"] == "uniform" and metrics["answers_of"] == "vanilla/576"
    assert metrics["tasks"] == full["tasks"] and metrics["output_kl"] == 0
    assert samples.output_kl.eq(0).all() and samples.shift_gaussian_kl.eq(0).all()
    pd.testing.assert_frame_equal(samples.drop(columns="output_kl"), unpruned.drop(columns="output_kl"))


def test_two_runs_are_equal_and_force_repeats(out: Path, data: str, tmp_path: Path) -> None:
    before = (record(out) / "metrics.json").stat().st_mtime_ns
    assert call(*words(data, tmp_path)) == 0
    same(record(out), record(tmp_path))
    same(record(out, "vanilla", 576), record(tmp_path, "vanilla", 576))
    assert call(*words(data, tmp_path, "force=true")) == 0
    same(record(out), record(tmp_path))
    assert (record(out) / "metrics.json").stat().st_mtime_ns == before


def test_batch_size_does_not_change_answers(out: Path, data: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(eval.progress, "MINUTE", 0.0)
    assert call(*words(data, tmp_path, "batch_size=3")) == 0
    assert "\nvanilla 576: 18 of 24 questions, 00:0" in capsys.readouterr().err
    a, b = load(record(out))[1], load(record(tmp_path))[1]
    exact = [*COLUMNS, "failed", "visual_tokens"]
    pd.testing.assert_frame_equal(a[exact], b[exact])
    assert all(np.array_equal(x, y) for x, y in zip(a["index"], b["index"]))
    np.testing.assert_allclose(a.shift_gaussian_kl, b.shift_gaussian_kl, rtol=1e-4)


def test_killed_run_goes_on_inside_a_point(
    out: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, calls = PrunedLlava._answer, []

    def interrupted(self: PrunedLlava, batch: list, images: list) -> list:  # after vanilla's two batches, and one
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer(self, batch, images)

    monkeypatch.setattr(PrunedLlava, "_answer", interrupted)
    assert call(*words(data, tmp_path)) == 130
    assert "error: interrupted" in capsys.readouterr().err and not record(tmp_path).exists()
    journal = record(tmp_path).parent / ".16.partial" / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"batch": "torn li')
    assert call(*words(data, tmp_path)) == 0
    shown = capsys.readouterr()
    assert len(calls) == 5 and "going on with an interrupted run: 1 batches" in shown.err
    assert "50% was answered before" in shown.out
    same(record(out), record(tmp_path))
    resumed = load(record(tmp_path))[0]
    assert resumed["resumed"] == 0.5 and load(record(out))[0]["resumed"] == 0
    point = tables.timings(read_sweeps(tmp_path)[0][0]).set_index("method").loc["cls_attention"]
    assert point["prefill_ms"] == pytest.approx(1000 * resumed["seconds"]["prefill"] / 12)  # of 24 questions


def test_other_config_is_refused(out: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words(data, out, "dtype=bfloat16")) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and "dtype=auto, not bfloat16" in shown[0] and "force=true" in shown[0]


def test_another_precision_of_auto_is_refused(out: Path, data: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = refused(capsys, *words(data, out))
    assert f"{record(out, 'vanilla', 576)}' was computed in float32, and dtype=auto is bfloat16 here" in line
    assert line.endswith("choose another out= or repeat it with method=vanilla force=true")
    assert call(*words(data, out), "device=cpu") == 0


def test_overrides_have_their_own_folder(out: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words(data, out, "method=random", "method.seed=7", "pictures=0")) == 0
    folder = next(record(out).parents[1].glob("random-*")) / "16"
    assert load(folder)[0]["overrides"] == {"seed": 7} and not (folder / "pictures").exists()


def test_sweep_shares_work_and_outlives_a_bad_point(
    out: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = words(data, tmp_path, "-m")
    sweep[:2] = ["budget=16,900", "method=cls_attention,uniform"]
    assert call(*sweep) == 1
    shown = capsys.readouterr()
    assert shown.err.count("error: budget must be between 1 and 576, got 900") == 2
    assert "running the unpruned model first" in shown.err and "\r" not in shown.err  # no bar in a log
    same(record(out), record(tmp_path))
    assert load(record(tmp_path, "uniform"))[0]["status"] == "finished"
    assert not record(tmp_path, "uniform", 900).exists()


def test_a_sweep_reads_each_image_once_and_never_takes_one_for_another(tmp_path: Path, monkeypatch) -> None:
    """Two data folders whose images have the same names, answered in one process."""
    read, decode = [], lmms_model.decode
    monkeypatch.setattr(lmms_model, "decode", lambda images: (read.append(1), decode(images))[1])
    first, second = (
        f"tasks.data_dir={write_data(tmp_path / str(n), [encoded(picture(i)) for i in range(n, n + 4)])}"
        for n in (0, 4)
    )
    for data, out, fresh in ((first, "a", True), (second, "b", False), (second, "c", True)):
        if fresh:
            point._load.cache_clear()
        before = len(read)
        assert call(*words(data, tmp_path / out, "-m", "budget=16,32", "pictures=0")) == 0
        assert len(read) - before == 4  # by the unpruned run
    a, b, c = (load(record(tmp_path / out))[1] for out in "abc")
    assert not a["index"].map(tuple).equals(b["index"].map(tuple))
    pd.testing.assert_frame_equal(b, c)


def test_help_is_quick_and_complete() -> None:
    from pruning.registry import names

    code = "import sys, run; status = run.main(['--help']); assert 'torch' not in sys.modules; sys.exit(status)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert shown.returncode == 0, shown.stderr
    for word in [*names(), "mini", "embedded", "mini_pope", "budget=K", "metrics.json", "force=false", "launcher"]:
        assert word in shown.stdout
