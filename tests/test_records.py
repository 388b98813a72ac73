"""The record on disk: whole or not at all, its own or refused, one process at a time."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval import point
from eval.journal import Journal
from eval.logits import rows_of, write_npy
from eval.records import Record, differences
from eval.settings import Plan
from pruning.errors import InputError
from tests.conftest import ROOT


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        model="mini",
        path="models/mini",
        prompt="<image>{question}",
        cache_mb=1,
        method="random",
        parameters={"seed": 0},
        budget=16,
        tasks=("mini_gqa",),
        split="test",
        data_dir=None,
        limit=None,
        seed=0,
        dtype="auto",
        device="auto",
        batch_size=None,
        pictures=0,
        out=tmp_path,
        force=False,
        tracking={"name": "none"},
    )


def test_folder_names(plan: Plan) -> None:
    assert plan.folder == plan.out / "mini" / "test" / "random" / "16"
    other = replace(plan, parameters={"seed": 5}, limit=8)
    assert other.overrides == {"seed": 5} and other.folder.parent.name == other.label != plan.label
    assert other.folder.parts[-3] == "test-first8"
    assert replace(other, out=Path("elsewhere"), device="cpu").identity == other.identity


def test_a_record_that_breaks_off_leaves_the_old_one(plan: Plan) -> None:
    record = Record(plan)
    record.write({"status": "finished", "n": 1})

    def breaks(folder: Path) -> None:
        (folder / "samples.parquet").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.write({"status": "finished", "n": 2}, breaks)
    assert record.read() == {"status": "finished", "n": 1} and record.finished()
    record.write({"status": "finished", "n": 3})
    assert record.read()["n"] == 3
    assert [p.name for p in record.folder.parent.iterdir()] == ["16"]


def test_a_kill_between_the_two_renames_loses_nothing(plan: Plan) -> None:
    record = Record(plan)
    record.write({"status": "finished", "n": 1})
    record.folder.rename(record.old)  # as write() does, and then SIGKILL
    shutil.copytree(record.old, record.fresh)
    with record.lock(print):
        assert record.finished() and record.read()["n"] == 1
    record.write({"status": "finished", "n": 2})
    shutil.copytree(record.folder, record.old)  # SIGKILL right after the second one
    with record.lock(print):
        assert record.read()["n"] == 2
    assert [p.name for p in record.folder.parent.iterdir()] == ["16"]


def test_another_config_is_named(plan: Plan) -> None:
    Record(plan).write({"status": "finished"})
    with pytest.raises(InputError, match=r"tasks\.names.*dtype=auto, not float16"):
        Record(replace(plan, dtype="float16", tasks=("mini_pope",))).finished()
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b=1, not 3"]


def test_another_checkpoint_of_the_same_name_is_another_model(plan: Plan, tmp_path: Path) -> None:
    for name, value in {"a": 1.0, "b": 2.0, "elsewhere/a": 1.0}.items():
        folder = tmp_path / name / "llava"
        shutil.copytree(ROOT / "models" / "mini", folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file({"first": torch.zeros(100), "last": torch.full((100,), value)}, folder / "model.safetensors")
    a, b, moved = (replace(plan, path=str(tmp_path / name / "llava")) for name in ("a", "b", "elsewhere/a"))
    Record(a).write({"status": "finished"})
    assert Record(moved).finished() and str(tmp_path) not in str(a.identity)
    with pytest.raises(InputError, match=r"model\.path=llava@\w+, not llava@\w+"):
        Record(b).finished()
    clip = replace(plan, options={"clip_text": a.path})
    assert clip.identity == replace(clip, options={"clip_text": moved.path}).identity
    assert clip.identity != replace(clip, options={"clip_text": b.path}).identity


def test_failed_points_are_recorded_and_run_again(plan: Plan) -> None:
    point.fail(plan, "RuntimeError: no luck")
    metrics = Record(plan).read()
    assert metrics["status"] == "failed" and metrics["reason"] == "RuntimeError: no luck" and metrics["budget"] == 16
    assert not Record(plan).finished()
    Record(plan).write({"status": "finished"})
    point.fail(plan, "later")  # never over a finished record
    assert Record(plan).read()["status"] == "finished"


def test_journal_keeps_whole_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, "abc")
    journal.add("one", [{"text": "red"}])
    journal.add("two", [{"text": "blue"}])
    journal.close()
    whole = file.read_bytes()
    for cut in range(len(whole) - 1, whole.index(b'"two"'), -7):  # torn at any place of the last line
        file.write_bytes(whole[:cut])
        again = Journal(file, "abc")
        assert list(again.batches) == ["one"]
        again.add("two", [{"text": "blue"}])
        again.close()
        assert file.read_bytes() == whole
    other = Journal(file, "another config")
    assert not other.batches
    other.close()


def test_logits_lie_beside_the_journal_and_survive_a_kill(tmp_path: Path) -> None:
    rows = [np.arange(i, i + 5, dtype=np.float16) for i in range(3)]
    file, places = tmp_path / "journal.jsonl", []
    for number, row in enumerate(rows):
        journal = Journal(file, "abc")
        journal.add(str(number), [{"text": "red", "logits": row}, {"text": "no image"}])
        journal.close()
        with journal.logits.path.open("ab") as half:  # of the batch in which the process was killed
            half.write(b"half a row")
        assert row.tobytes() not in file.read_bytes()
    for own in Journal(file, "abc").batches.values():
        places += [row.get("logits") for row in own]
    write_npy(tmp_path / "all.npy", journal.logits.path, places)
    blank = np.full(5, np.nan, np.float16)
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), [rows[0], blank, rows[1], blank, rows[2], blank])
    np.testing.assert_array_equal(rows_of(tmp_path / "all.npy")(2), rows[1].astype(np.float32))
    journal.logits.path.write_bytes(rows[0].tobytes())  # cut, as a copy of the folder may be
    assert not Journal(file, "abc").batches


def hold(plan: Plan, ready: multiprocessing.Event, go: multiprocessing.Event) -> None:
    with Record(plan).lock(print):
        ready.set()
        go.wait(10)
        Record(plan).write({"status": "finished"})


def test_second_process_waits(plan: Plan) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    first = context.Process(target=hold, args=(plan, ready, go))
    first.start()
    assert ready.wait(10)
    said: list[str] = []

    def wait(line: str) -> None:
        said.append(json.dumps(line))
        go.set()

    with Record(plan).lock(wait):
        assert Record(plan).finished()
    first.join(10)
    assert len(said) == 1 and "another process runs" in said[0] and first.exitcode == 0


def enter_and_leave(plan: Plan, diary: Path) -> None:
    for _ in range(20):
        with Record(plan).lock(lambda line: None), diary.open("a", buffering=1) as file:
            file.write("in\n")
            file.write("out\n")


def test_never_two_in_one_point_though_the_lock_file_comes_and_goes(plan: Plan, tmp_path: Path) -> None:
    context, diary = multiprocessing.get_context("fork"), tmp_path / "diary"
    crowd = [context.Process(target=enter_and_leave, args=(plan, diary)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(30)
    assert [process.exitcode for process in crowd] == [0] * 4
    assert diary.read_text().split() == ["in", "out"] * 80
