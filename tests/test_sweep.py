"""Sweeps that go wrong: what a failed, refused, lost, interrupted or killed point does to the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from eval.lmms_model import PrunedLlava
from pruning.cls_attention import ClsAttention
from scripts import kill_test
from tests.sandbox import call, encoded, picture, write_data

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = {
    "local": ["launcher=local"],
    "slurm": ["launcher=slurm", *(f"hydra.launcher.{x}" for x in ("gpus_per_node=0", "mem_gb=2", "cpus_per_task=1"))],
}
BROKEN = '''
"""A method that fails."""
import os, signal
from dataclasses import dataclass
from pruning.base import Pruner

@dataclass
class Broken(Pruner):
    dies: bool = False

    def score(self, tokens, question):
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("no luck today")
'''
BROKEN_YAML = "# fails\n_target_: pruning.broken.Broken\nbudget: ${budget}\ndies: false\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_data(tmp_path_factory.mktemp("data"), [encoded(picture(i)) for i in range(2)])
    return f"tasks.data_dir={folder}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with one more method, which fails."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "run.py", folder)
    for name in ("configs", "eval", "models", "pruning", "results/paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "pruning" / "broken.py").write_text(BROKEN)
    (folder / "configs" / "method" / "broken.yaml").write_text(BROKEN_YAML)
    return folder


def sweep(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python run.py -m WORDS` there, on two questions an image and two images."""
    few = ("-m", "tasks.names=[mini_gqa,mini_pope]", "pictures=0")
    command = [sys.executable, "run.py", *few, *words]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300)


def facts(out: Path, method: str, budget: int = 16) -> dict:
    return json.loads((out / "mini" / "test" / method / str(budget) / "metrics.json").read_text())


def needs(launcher: str) -> None:
    """Skips where there is no Slurm."""
    if launcher != "slurm":
        return
    try:
        there = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        there = None
    if there is None or there.returncode or not there.stdout.strip():
        pytest.skip("no running Slurm here; `bash scripts/slurm_single_node.sh` installs and starts one")


def check_failed(out: Path, method: str, file: str, shown: str) -> None:
    """The point of `method` failed in `file` and says so everywhere; uniform's has its place in the report."""
    assert f"  failed: {method} at 16 tokens: RuntimeError: no luck today" in shown
    assert facts(out, method)["status"] == "failed"
    assert file in (out / "mini" / "test" / method / "16" / "traceback.txt").read_text()
    assert facts(out, "uniform")["status"] == "finished"
    assert set(pd.read_csv(out / "summary.csv")["method"]) == {"vanilla", "uniform"}
    assert "RuntimeError: no luck today" in (out / "report.md").read_text()


def test_a_failed_point_leaves_the_others_their_report(data: str, tmp_path: Path, monkeypatch, capsys) -> None:
    def score(self: ClsAttention, tokens: object, question: object) -> None:
        raise RuntimeError("no luck today")

    monkeypatch.setattr(ClsAttention, "score", score)
    words = ["budget=16", "pictures=0", "tasks.names=[mini_gqa]", data, f"out={tmp_path}"]
    assert call("-m", "method=cls_attention,uniform", *words) == 1
    check_failed(tmp_path, "cls_attention", "tests/test_sweep.py", capsys.readouterr().err)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_point_in_another_process(checkout: Path, data: str, tmp_path: Path, launcher: str) -> None:
    needs(launcher)
    ran = sweep(checkout, "method=broken,uniform", "budget=16", data, f"out={tmp_path}", *LAUNCHERS[launcher])
    assert ran.returncode == 1, ran.stderr
    check_failed(tmp_path, "broken", "pruning/broken.py", ran.stderr)
    if launcher == "slurm":
        assert len(list((tmp_path / ".submitit").rglob("*_result.pkl"))) == 2


def test_a_lost_process_leaves_the_others_their_report(checkout: Path, data: str, tmp_path: Path) -> None:
    words = ["tasks.names=[mini_gqa,mini_pope]", "pictures=0", "budget=16", data, f"out={tmp_path}"]
    assert call("-m", "method=uniform", *words) == 0
    (tmp_path / "report.md").unlink()
    lost = sweep(checkout, "method=broken", "method.dies=true", *words, "launcher=local")
    assert lost.returncode == 1 and "a process of the sweep was lost" in lost.stderr, lost.stderr
    assert "uniform" in (tmp_path / "report.md").read_text()
    assert "Traceback" not in lost.stderr


def test_a_budget_out_of_reach_is_a_hole_and_no_error(data: str, tmp_path: Path, capsys) -> None:
    words = ["-m", "budget=16", "limit=1", "pictures=0", "tasks.names=[mini_gqa]", data]
    assert call(*words, "method=fastv", f"out={tmp_path / 'alone'}") == 0
    assert call(*words, "method=fastv,uniform", f"out={tmp_path / 'both'}") == 0
    assert "out of reach: fastv at 16 tokens: budget of FastV" in capsys.readouterr().err
    out = tmp_path / "both" / "mini" / "test-first1"
    assert json.loads((out / "fastv" / "16" / "metrics.json").read_text())["status"] == "out of reach"
    text = (tmp_path / "both" / "report.md").read_text()
    assert "fastv/16" in text.split("## Points out of reach (1)")[1] and "Failed points" not in text
    assert not list(out.rglob(".*"))


def test_exit_statuses_of_refused_and_dry_sweeps(data: str, tmp_path: Path, capsys) -> None:
    words = ["limit=1", "pictures=0", "tasks.names=[mini_gqa]", "-m", data, f"out={tmp_path}", "method=uniform"]
    assert call(*words, "budget=900,901") == 2
    assert "  refused: budget must be between 1 and 576, got 901" in capsys.readouterr().err
    assert call(*words, "budget=16,32", "dry_run=true") == 0
    assert call(*words, "budget=16,900", "dry_run=true") == 1
    assert not list(tmp_path.rglob("metrics.json")) and not (tmp_path / ".failures").exists()


def test_controls_that_ignore_the_budget_are_one_point(data: str, tmp_path: Path) -> None:
    words = ["-m", "limit=1", "pictures=0", "tasks.names=[mini_gqa]", data, f"out={tmp_path}"]
    assert call(*words, "method=blank,vanilla", "budget=16,32") == 0
    points = {p.parent.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("metrics.json")}
    assert sorted(points) == ["mini/test-first1/blank/0", "mini/test-first1/vanilla/576"]
    assert not any("NaN" in text for text in points.values())  # of one image there is no standard error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_sweep_says_what_is_there(data: str, tmp_path: Path, number: int, monkeypatch, capsys) -> None:
    answer, calls, handlers = PrunedLlava._answer, [], [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def stopped(self: PrunedLlava, batch: list, images: list) -> list:  # in the third point, vanilla's the first
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return answer(self, batch, images)

    monkeypatch.setattr(PrunedLlava, "_answer", stopped)
    words = ["-m", "limit=1", "pictures=0", "tasks.names=[mini_gqa]", data, f"out={tmp_path}"]
    assert call(*words, "method=uniform", "budget=16,32") == 128 + number
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {'terminated' if number == signal.SIGTERM else 'interrupted'}; the same command")
    assert f"2 points are finished, `python -m eval.report {tmp_path}`" in last
    assert not list(tmp_path.rglob(".*"))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_killed_sweep_ends_as_an_undisturbed_one(data: str, tmp_path: Path) -> None:
    """What scripts/kill_test.py does many times, with the undisturbed sweep beside the killed one."""
    words = ["-m", "budget=16", "method=uniform", "batch_size=1", "pictures=1", "tasks.names=[mini_gqa]", data]
    calm, out = tmp_path / "calm", tmp_path / "killed"
    undisturbed = kill_test.start(words, calm)
    try:
        assert kill_test.kill_once(words, out, wait=0.01, writing=True, working=True)
        before = kill_test.records(out)  # whole, what is there
        assert kill_test.kill_once(words, out, wait=0.05, writing=False, working=True)
        assert before.items() <= kill_test.records(out).items()
        assert kill_test.start(words, out).wait() == 0, out.with_suffix(".log").read_text()
    finally:
        status = undisturbed.wait()
    assert status == 0, calm.with_suffix(".log").read_text()
    files = kill_test.comparable(calm)
    assert kill_test.comparable(out) == files and len(files) > 12
