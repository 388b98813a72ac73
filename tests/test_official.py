"""Published shapes, the evaluation protocol, the official benchmarks through run.py and lmms-eval's own command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import yaml
from loguru import logger
from PIL import Image

from eval import lmms_cli
from models.guard import guard_torchvision
from models.shape import PUBLISHED, config_file, parse, read_shape
from scripts.make_official_samples import write
from tests import tiny
from tests.conftest import ROOT
from tests.sandbox import call, encoded, refused

PUBLIC = {  # model -> (parameters as the hub states them, visual tokens, decoder layers)
    "llava15_7b": (7_063_427_072, 576, 32),
    "llava15_13b": (13_351_494_656, 576, 40),
    "llava_next_7b": (7_063_431_168, 2880, 32),
    "llava_next_mistral_7b": (7_566_747_648, 2880, 32),
}
OFFICIAL = ["gqa", "mme", "pope", "scienceqa_img", "textvqa_val"]


# --- shapes and protocol ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLIC)
def test_published_configurations_make_the_real_classes(name):
    guard_torchvision()
    import transformers as t

    config = json.loads((PUBLISHED / f"{name}.json").read_text())
    cls = getattr(t, config["architectures"][0])
    with torch.device("meta"):
        model = cls(cls.config_class(**config))
    shape, (parameters, tokens, layers) = parse(config), PUBLIC[name]
    assert sum(p.numel() for p in model.parameters()) == shape.parameters == parameters
    assert (shape.visual_tokens, shape.text.layers, shape.depth) == (tokens, layers, 23)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (shape.text.width, shape.vision.width)


def test_shapes_of_saved_models_are_those_of_the_loaded_ones(tmp_path, llava):
    cases = [(ROOT / "models" / "mini", llava), (tmp_path / "next", tiny.build(tmp_path / "next", next_=True))]
    for folder, loaded in cases:
        shape = read_shape(str(folder))
        assert shape.parameters == sum(p.numel() for p in loaded.model.parameters())
        assert shape.visual_tokens == loaded.visual_tokens and shape.depth == loaded.tower.depth
        assert parse(loaded.model.config.to_dict()) == shape  # what the automatic batch size reads
    sparse = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"vocab_size": 32064}}
    vision = json.loads((PUBLISHED / "llava15_7b.json").read_text())["vision_config"]
    assert parse({**sparse, "vision_config": vision}).parameters == PUBLIC["llava15_7b"][0]
    assert config_file("llava-hf/no-such-model") is None


def test_switches_are_checked_and_recorded(tmp_path, capsys):
    out = f"out={tmp_path}"
    lines = {
        ("model=llava15_7b", "model.newline=keep"): "model.newline is a choice for LLaVA-NeXT",
        ("model=llava_next_7b", "model.image_protocol=pad"): "model.image_protocol is a choice for LLaVA-1.5",
        ("model=llava15_7b", "model.image_protocol=stretch"): "must be one of pad, crop, got 'stretch'",
        ("model=llava_next_7b", "budget=2881"): "budget must be between 1 and 2880, got 2881",
        ("model=llava_next_7b", "budget=81"): "must be divisible by 5, got 81; the nearest are 80 and 85",
        ("model=llava15_7b", "budget=16", "method=fastv"): "32 decoder layers, must be between 19 and 576, got 16",
        ("model=llava15_13b", "budget=9", "method=fastv"): "40 decoder layers, must be between 15 and 576, got 9",
        ("model=llava_next_7b", "budget=960", "method=fastv"): "inside the language model: for LLaVA-1.5 only",
        ("tasks.max_new_tokens=0",): "tasks.max_new_tokens must be at least 1",
        ("tasks=paper", "limit=3"): "limit must be even for mme",
    }
    for words, line in lines.items():
        assert line in refused(capsys, *words, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PUBLIC)
def test_each_model_runs_from_a_folder_of_its_class(name, samples, tmp_path):
    next_, mistral = "next" in name, "mistral" in name
    folder = tiny.save(tmp_path / "model", next_, "mistral" if mistral else "llama")
    words = [
        f"model={name}",
        f"model.path={folder}",
        "tasks=paper",
        "tasks.names=[pope,gqa]",
        "limit=2",
        "pictures=0",
    ]
    words += [f"tasks.data_dir={samples}", "tasks.max_new_tokens=2", f"out={tmp_path}", "dtype=bfloat16"]
    assert call(*words, "method=divprune", f"budget={20 if next_ else 4}") == 0
    point = tmp_path / name / "test-first2" / "divprune" / str(20 if next_ else 4)
    model = yaml.safe_load((point / "config.yaml").read_text())["identity"]["model"]
    assert model["path"].startswith("model@") and model["prompt"].startswith(
        "[INST]" if mistral else "A chat between"
    )
    switches = {"newline": "drop", "unpad": True} if next_ else {"image_protocol": "pad"}
    assert switches.items() <= model.items()
    assert switches.items() <= json.loads((point / "metrics.json").read_text())["protocol"].items()


# --- what is not there ------------------------------------------------------------------------------------
def test_missing_model_and_benchmark_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(capsys, "model=llava15_7b", "budget=64", f"out={tmp_path / 'o'}")
    assert "'llava-hf/llava-1.5-7b-hf' is not a folder, not in the cache" in line and "set model.path=FOLDER" in line
    line = refused(capsys, "tasks=paper", "budget=64", f"out={tmp_path / 'o'}")
    assert "task 'gqa' (lmms-lab-encoder/GQA)" in line and "set tasks.data_dir=FOLDER" in line
    assert "--include 'testdev_balanced_*/testdev*' --local-dir FOLDER/gqa" in line
    line = refused(capsys, "tasks=paper", "budget=64", f"out={tmp_path / 'o'}", f"tasks.data_dir={tmp_path}")
    assert f"no parquet files for task 'gqa' in '{tmp_path / 'gqa'}'" in line
    assert not (tmp_path / "o").exists()


def test_dry_run_prints_the_grid_and_loads_nothing_heavy(tmp_path):
    code = "import sys, run; run.main(sys.argv[1:]); assert 'transformers' not in sys.modules"
    words = ["-m", "model=llava15_7b", "tasks=paper", "method=acgr_tatcs,fastv", "budget=64,16", "dry_run=true"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *words, "launcher=slurm", f"out={tmp_path / 'o'}"],
        **{"cwd": ROOT, "capture_output": True, "text": True, "env": {"HF_HUB_OFFLINE": "1", "PATH": ""}},
    )
    assert shown.returncode == 0 and not (tmp_path / "o").exists(), shown.stderr
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line}
    assert rows["vanilla"] == ["vanilla", "to", "run"] and rows["fastv"] == ["fastv", "to", "run", "no"]
    assert "7.06e9 parameters" in shown.stdout and "GPU hours  about" in shown.stdout
    missing = shown.stdout.split("missing, or not possible:")[1]
    assert missing.count("  - ") == 7 and "must be between 19 and 576" in missing


def test_hours_of_the_page_are_those_of_the_estimate():
    from types import SimpleNamespace

    from eval import needs, official

    page = (ROOT / "docs" / "cluster.md").read_text()
    totals = {}
    for name in PUBLIC:
        cells = next(line for line in page.splitlines() if line.startswith(f"| {name} |")).split("|")[2:6]
        shape = read_shape("none/none", name)
        budgets = [shape.visual_tokens, *((80, 40, 20) if shape.crops > 1 else (64, 32, 16))]
        plans = [SimpleNamespace(shape=shape, budget=budget, limit=None, data_dir=None) for budget in budgets]
        hours = [sum(needs.hours(plan, task) for task in official.COUNTS) for plan in plans]
        assert [float(cell) for cell in cells] == [round(h, 1) for h in hours]
        totals[name] = round(hours[0] + 6 * sum(hours[1:]))  # six methods at three budgets, and the unpruned model
        assert f"{shape.gigabytes(needs.BATCH, 1, 4096):.0f} GB" in page
    assert f"about {totals['llava15_7b']} hours" in page and f"about {totals['llava_next_7b']}. Memory" in page
    for table, name in (("table_llava15", "llava15_7b"), ("table_llava_next", "llava_next_7b")):
        text = " ".join((ROOT / "configs" / "experiment" / f"{table}.yaml").read_text().replace("\n#", "").split())
        assert f"about {totals[name]} GPU hours" in text


# --- official tasks ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    write(folder, 6)
    return folder


@pytest.fixture(scope="module")
def out(samples, tmp_path_factory) -> Path:
    """The five official tasks on the embedded model, cls_attention at 16 tokens."""
    folder = tmp_path_factory.mktemp("out")
    words = ["tasks=paper", f"tasks.data_dir={samples}", "method=cls_attention", "budget=16", f"out={folder}"]
    assert call(*words, "pictures=1") == 0
    return folder


def record(out: Path, method: str = "cls_attention", budget: int = 16, model: str = "mini"):
    """metrics.json and samples.parquet of a point."""
    folder = out / model / "test" / method / str(budget)
    return json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "samples.parquet")


def test_dry_run_counts_the_questions_that_are_there(samples, out, tmp_path, capsys):
    words = ["tasks=paper", f"tasks.data_dir={samples}", f"out={tmp_path}", "dry_run=true"]
    assert call(*words) == 0
    shown, (metrics, rows) = capsys.readouterr().out, record(out)
    for task, found in metrics["tasks"].items():
        images = rows[rows.task == task].image_id.nunique()
        assert f"{task} ({found['n']} questions on {images} images)" in shown
    assert "4.8e6 parameters" in shown and "GPU hours  about 0.0" in shown


def test_five_official_tasks_run_on_local_files(out):
    metrics, rows = record(out)
    assert list(metrics["tasks"]) == OFFICIAL and metrics["failed"] == 0
    assert metrics["protocol"]["max_new_tokens"] == dict(zip(OFFICIAL, (16, 16, 128, 16, 128)))
    assert metrics["protocol"]["ocr"] is True and metrics["protocol"]["decoding"] == "greedy"
    asked = rows.groupby("task").question.first()
    assert "Reference OCR token: " in asked["textvqa_val"] and asked["scienceqa_img"].endswith("directly.")
    pictured = rows[rows.task == "gqa"].image_id
    assert len(pictured) == 6 and pictured.nunique() == 4  # some pictures have two questions
    assert not list(out.rglob("submissions"))
    pope = metrics["tasks"]["pope"]["metrics"]
    assert {"pope_accuracy", "pope_f1_score", "pope_precision", "pope_recall", "pope_said_yes"} <= set(pope)
    assert metrics["tasks"]["pope"]["score"] == pytest.approx(100 * pope["pope_accuracy"])


def test_mme_is_scored_as_perception_plus_cognition(out):
    for method, budget in (("cls_attention", 16), ("vanilla", 576)):
        metrics, rows = record(out, method, budget)
        mme = metrics["tasks"]["mme"]
        total = mme["metrics"]["mme_perception_score"] + mme["metrics"]["mme_cognition_score"]
        categories = rows[rows.task == "mme"].type.nunique()
        assert mme["metrics"]["mme_total"] == total and mme["score"] == pytest.approx(total / (2 * categories))
        assert rows[rows.task == "mme"].weight.mean() == pytest.approx(1)


def test_lmms_evals_own_command_gives_the_same_scores(out, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VERBOSITY", "INFO")  # lmms-eval sets it
    words = ["--model", "dcp_prune", "--model_args", "path=models/mini,method=cls_attention,budget=16"]
    words += ["--tasks", ",".join(OFFICIAL), "--data_dir", str(samples), "--output_path", str(tmp_path)]
    lmms_cli.main(words)
    logger.remove()  # lmms-eval's, which writes to this test's output
    found = json.loads(next(tmp_path.rglob("*results.json")).read_text())["results"]
    for task, values in record(out)[0]["tasks"].items():
        for name, value in values["metrics"].items():
            if name not in ("mme_total", "pope_said_yes"):
                assert found[task][f"{name},none"] == pytest.approx(value), (task, name)


# --- LLaVA-NeXT, CLIP's text tower ------------------------------------------------------------------------
def test_next_runs_end_to_end_and_reports_what_reached_the_language_model(samples, tmp_path):
    folder = tiny.save(tmp_path / "model", next_=True)
    words = [f"model.path={folder}", "model.name=tiny_next", "tasks=paper", f"tasks.data_dir={samples}"]
    words += ["tasks.names=[pope]", "budget=20", "method=acgr_tatcs", f"out={tmp_path}", "tasks.max_new_tokens=3"]
    assert call(*words, "pictures=1") == 0
    metrics, rows = record(tmp_path, "acgr_tatcs", 20, "tiny_next")
    assert metrics["protocol"]["newline"] == "drop" and metrics["protocol"]["unpad"] is True
    assert metrics["protocol"]["max_new_tokens"] == {"pope": 3}
    assert (rows.visual_tokens == 20).all()  # squares have all five crops
    assert "embeddings" in metrics["protocol"]["text_features"]
    assert record(tmp_path, "vanilla", 80, "tiny_next")[1].visual_tokens.min() > 80  # newlines
    assert len(list((tmp_path / "tiny_next/test/acgr_tatcs/20/pictures").glob("*.png"))) == 1


def test_an_image_with_fewer_crops_gets_their_share(tmp_path):
    import pruning

    cut, image = tiny.build(tmp_path, next_=True), tiny.pictures()[2]  # 40 x 160: four crops
    answer = cut.answer([image], [["what is 7?"]], pruning.load("uniform", 40), 1)[0][0]
    shown = len(cut.crops.frame(image.size[::-1]).patches)
    assert cut.crops.number(image.size[::-1]) == 4
    assert answer.visual_tokens == len(answer.index) == 4 * 8 and shown >= 32


def test_clip_text_tower_is_read_and_named(samples, tmp_path, capsys):
    folder, clip = tiny.save(tmp_path / "model", next_=False), tiny.save_clip(tmp_path / "clip")
    words = [f"model.path={folder}", "tasks=paper", f"tasks.data_dir={samples}", "tasks.names=[pope]", "budget=4"]
    words += ["pictures=0", "tasks.max_new_tokens=2", "method=tatcs", "method.text=clip", "method.trigger=always"]
    assert call(*words, f"model.clip_text={clip}", f"out={tmp_path / 'a'}") == 0
    point = next((tmp_path / "a" / "mini" / "test").glob("tatcs-*/4"))
    assert json.loads((point / "metrics.json").read_text())["protocol"]["text_features"] == "CLIP text tower of clip"
    assert "clip_text: clip" in (point / "config.yaml").read_text()
    assert call(*words, f"model.clip_text={clip}", "method.text=embeddings", f"out={tmp_path / 'c'}") == 0
    point = next((tmp_path / "c" / "mini" / "test").glob("tatcs-*/4"))
    assert "embeddings" in json.loads((point / "metrics.json").read_text())["protocol"]["text_features"]
    wide = tiny.save_clip(tmp_path / "wide", 64)
    capsys.readouterr()
    line = refused(capsys, *words, f"model.clip_text={wide}", f"out={tmp_path / 'b'}")
    assert "has a tower of width 64, expected 32" in line


def test_half_a_picture_is_a_failed_question(tmp_path):
    """lmms-eval makes Pillow lenient, and official data are decoded inside `datasets`."""
    features = {name: datasets.Value("string") for name in ("id", "question_id", "question", "answer", "category")}
    photo = encoded(Image.effect_noise((200, 200), 90).convert("RGB"), "JPEG")
    asked = {"question": "Is there a dog in the image?", "answer": "yes", "category": "adversarial"}
    rows = [
        {"id": str(i), "question_id": str(i), "image": {"bytes": data, "path": None}, **asked}
        for i, data in enumerate((photo, photo[: len(photo) // 2]))
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features | {"image": datasets.Image()}))
    (tmp_path / "pope").mkdir()
    table.to_parquet(str(tmp_path / "pope" / "test-0.parquet"))
    words = ["tasks.names=[pope]", f"tasks.data_dir={tmp_path}", f"out={tmp_path / 'out'}", "method=vanilla"]
    assert call(*words) == 0
    failed = pd.read_parquet(next((tmp_path / "out").rglob("samples.parquet")))["failed"]
    assert failed.isna().tolist() == [True, False] and "truncated" in failed[1]
