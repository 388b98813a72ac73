"""A report of a small sweep whose answer is known."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.cell import verdicts
from eval.compact import ablation_table, methods_table
from eval.failures import OUT_OF_REACH
from eval.paper import judge, unlike
from eval.report import main, write_report
from eval.scores import average_percent, task_scores
from eval.sheet import draw_sheet, most_disputed
from eval.sweep import kept_indices, overlap, read_sweeps
from scripts.benches._records import PATCHES, answers, questions, write_failed, write_point, write_sweep

SKILLS = {"random": 0.1, "downsample": 0.2, "visionzip": 0.5, "acgr_tatcs": 0.95}
BUDGETS = (16, 32, 64)
OFFICIAL = ("gqa", "mme", "pope", "scienceqa_img", "textvqa_val")


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, SKILLS, BUDGETS, images=30, each=2)
    write_failed(folder, "pool", 16, "RuntimeError: it broke")
    write_failed(folder, "fastv", 16, "budget must be more", OUT_OF_REACH)
    torn = folder / "mini" / "test" / "uniform" / "16"
    shutil.copytree(folder / "mini" / "test" / "random" / "16", torn)
    (torn / "samples.parquet").write_bytes((torn / "samples.parquet").read_bytes()[:500])
    shutil.copytree(torn, folder / "mini" / "test" / "random" / ".32.new")
    return folder


@pytest.fixture(scope="module")
def report(sweep_folder):
    write_report(sweep_folder)
    names = ("summary", "shift_correlation", "tests", "overlap", "paper", "timings")
    return {name: pd.read_csv(sweep_folder / f"{name}.csv") for name in names}


def samples(folder, method, budget):
    return pd.read_parquet(folder / "mini" / "test" / method / str(budget) / "samples.parquet")


def test_summary_holds_scores_ratios_and_the_hard_subset(sweep_folder, report):
    full, ours, peer = (
        samples(sweep_folder, m, b) for m, b in (("vanilla", 576), ("visionzip", 32), ("downsample", 32))
    )
    rows = report["summary"].query("method == 'visionzip' and budget == 32").set_index("task")
    for task, score in task_scores(ours).items():
        assert rows.loc[task, "score"] == pytest.approx(score, abs=0.006)
    average = average_percent(task_scores(ours), task_scores(full))
    assert rows.loc["average", "ratio"] == pytest.approx(average, abs=0.006)
    assert rows.loc["average", "ratio_low"] < average < rows.loc["average", "ratio_high"]
    hard = (full["score"] == 1) & (peer["score"] == 0)
    assert rows.loc["average", "hard_n"] == hard.sum() > 10
    assert rows.loc["average", "hard"] == pytest.approx(100 * ours["score"][hard].mean(), abs=0.006)
    assert rows.loc["average", "n"] == len(ours) == 300
    point = pd.read_csv(sweep_folder / "points.csv").query("method == 'visionzip' and budget == 32")
    assert point["accuracy"].item() == pytest.approx(average, abs=1e-4)
    assert point["gaussian_kl"].item() == pytest.approx(ours["shift_gaussian_kl"].mean(), rel=1e-4)
    assert not {"seconds", "tower_ms", "created"} & set(report["summary"])


@pytest.mark.parametrize("images, cell", [(1, r"[\d.]+"), (3, r"[\d.]+ \[[\d.]+, [\d.]+\] ?=?")])
def test_few_images_are_no_evidence(tmp_path, images, cell):
    write_sweep(tmp_path, {"random": 0.9, "acgr_tatcs": 1.0}, BUDGETS, images=images, each=2)
    text = write_report(tmp_path).read_text()
    assert f"on {images} image{'s' * (images > 1)}, tasks" in text and "intervals and tests say little" in text
    row = next(line for line in text.splitlines() if line.startswith("| acgr_tatcs |"))
    assert all(re.fullmatch(cell, part.strip()) for part in row.split("|")[3:-1]), row
    assert "0 methods are significantly below it, 0 above" in text or images == 1
    assert "within method" in text and (images > 1) == ("per sample (n" in text)


def test_correlations_tell_the_metrics_that_know_from_the_one_that_does_not(report):
    table = report["shift_correlation"].set_index(["metric", "scope", "kind"])
    assert len(table) == 3 * 4 * 3
    assert table.loc[("gaussian_kl", "across points", "spearman"), "high"] < -0.9
    for scope in ("per sample", "per sample minus null"):
        assert table.loc[("gaussian_kl", scope, "kendall"), "high"] < 0
        known, noise = (table.loc[(name, scope, "pearson"), "value"] for name in ("gaussian_kl", "noise"))
        assert known < -0.2 and abs(noise) < 0.05
    assert table.loc[("gaussian_kl", "per sample minus null", "pearson"), "n"] == 3 * 3 * 300
    assert table.loc[("gaussian_kl", "within method", "pearson"), "units"] == 4


def test_subtracting_the_null_takes_away_what_the_budget_alone_explains(tmp_path):
    asked, rng = questions(40, 2), np.random.default_rng(0)
    write_point(tmp_path, "vanilla", PATCHES, answers(asked, PATCHES, 1.0, 0, full=True))
    for method in ("random", "visionzip"):
        for budget in BUDGETS:  # both fall with the budget; within a budget neither knows the other
            table = answers(asked, budget, 0.5, 7)
            kappa = 16 / budget + rng.normal(0, 0.1, len(asked))
            right = (rng.random(len(asked)) < 0.2 + 0.2 * np.log2(budget / 16)) * 1.0
            write_point(tmp_path, method, budget, table.assign(score=right, shift_gaussian_kl=kappa))
    write_report(tmp_path, figures=False)
    found = pd.read_csv(tmp_path / "shift_correlation.csv").query("metric == 'gaussian_kl' and kind == 'spearman'")
    found = found.set_index("scope")
    assert found.loc["per sample", "high"] < -0.2
    assert found.loc["per sample minus null", "low"] < 0 < found.loc["per sample minus null", "high"]


def test_pairwise_tests_find_the_better_method(report):
    table = report["tests"].query("task == 'average'").set_index(["method", "budget"])
    assert set(report["tests"]["reference"]) == {"acgr_tatcs"} and len(table) == 9
    worst = table.loc[("random", 16)]
    assert worst["low"] > 0 and worst["p"] <= worst["p_holm"] < 0.001
    pope = report["tests"].query("task == 'mini_pope' and method == 'random' and budget == 16")
    assert pope["mcnemar_p"].item() < pope["mcnemar_p_holm"].item() < 0.01


def test_report_lists_what_failed_and_uses_the_rest(sweep_folder, report):
    text = (sweep_folder / "report.md").read_text()
    assert "RuntimeError: it broke" in text and "mini/test/uniform/16" in text and "Failed points (2)" in text
    failed, beyond = text.split("## Failed points")[1].split("## Points out of reach (1)")
    assert "mini/test/fastv/16" in beyond and "fastv" not in failed
    assert set(report["summary"]["method"]) == {"vanilla", *SKILLS}
    for name in ("accuracy_budget", "shift_budget", "shift_accuracy", "time_accuracy", "overlap_16"):
        assert f"figures/{name}.png" in text and (sweep_folder / "figures" / f"{name}.svg").stat().st_size > 2000
        with Image.open(sweep_folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300 and picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's, where a layout or an axis does not work out
def test_long_names_and_controls_alone_can_be_drawn(tmp_path):
    asked, none = questions(6, 2), {"index": [np.zeros(0, np.int16)] * 60, "shift_gaussian_kl": np.nan}
    long = {"layers": [0.4, 0.6, 0.8], "strength": 0.3, "survivors": 4.0}
    for folder in (tmp_path / "long", tmp_path / "controls"):
        write_point(folder, "vanilla", PATCHES, answers(asked, PATCHES, 1.0, 0, full=True))
    for overrides in ({}, long):
        write_point(tmp_path / "long", "acgr_tatcs", 16, answers(asked, 16, 0.5, 1), **overrides)
    write_point(tmp_path / "controls", "blank", 0, answers(asked, 1, 0.5, 1).assign(**none))
    for name, figure in (("long", "overlap_16"), ("controls", "ranking")):
        assert f"figures/{figure}.png" in write_report(tmp_path / name).read_text()
    assert not (tmp_path / "controls" / "figures" / "accuracy_budget.png").exists()


def test_equal_records_give_equal_bytes(sweep_folder, report, tmp_path):
    shutil.copytree(sweep_folder / "mini", tmp_path / "mini")
    write_report(tmp_path, figures=False)
    for name in ("summary.csv", "shift_correlation.csv", "tests.csv", "overlap.csv", "paper.csv"):
        assert (tmp_path / name).read_bytes() == (sweep_folder / name).read_bytes()


def test_points_with_other_questions_are_read_but_not_compared(tmp_path):
    asked = questions(20, 2)
    write_point(tmp_path, "vanilla", PATCHES, answers(asked, PATCHES, 1.0, 0, full=True))
    part = answers(asked, 16, 0.5, 1)[::3].sample(frac=1, random_state=0)
    write_point(tmp_path, "random", 16, part)
    (sweep,), failures = read_sweeps(tmp_path)
    assert not failures and len(sweep.questions) == len(asked)
    expected = list(task_scores(part).values())
    np.testing.assert_allclose(sweep.scores[sweep.find("random", 16)], expected)
    assert np.isnan(sweep.relative(sweep.scores)[sweep.find("random", 16)]).all()
    write_report(tmp_path, figures=False)


def test_overlap_is_the_intersection_over_the_union(tmp_path):
    asked = questions(4, 1, ("mini_gqa",))
    for method, kept in (("a", [0, 1, 2, 3]), ("b", [2, 3, 4, 575]), ("c", [-1, -1, -1, -1])):
        table = answers(asked, 16, 0.5, 1).assign(index=[np.array(kept, np.int16)] * 4)
        write_point(tmp_path, method, 4, table)
    masks = kept_indices(read_sweeps(tmp_path)[0][0].points, PATCHES)
    assert list(masks) == ["a", "b"]
    np.testing.assert_allclose(overlap(masks), [[1, 1 / 3], [1 / 3, 1]])


def test_the_sheet_shows_the_question_on_which_the_methods_disagree(sweep_folder, tmp_path):
    (sweep,), _ = read_sweeps(sweep_folder)
    chosen, q = most_disputed(sweep)
    assert {sweep.points[p].budget for p in chosen} == {16} and sweep.score[chosen, q].mean() == 0.5
    assert not draw_sheet(sweep, tmp_path / "a.png", tmp_path)
    coded = io.BytesIO()
    Image.new("RGB", (336, 336), "red").save(coded, "PNG")
    (tmp_path / "test").mkdir()
    images = pd.DataFrame({"image_id": [sweep.questions["image_id"][q]], "image": [{"bytes": coded.getvalue()}]})
    images.to_parquet(tmp_path / "test" / "images.parquet")
    assert draw_sheet(sweep, tmp_path / "a.png", tmp_path)
    with Image.open(tmp_path / "a.png") as sheet:
        shown = np.asarray(sheet.convert("RGB"))
    bright = (shown == (255, 0, 0)).all(
        2
    ).sum() / 300**2  # the image, and 16 of 576 patches four times, less outlines
    assert 1.02 < bright < 1 + 4 * 16 / 576


def test_verdicts_of_the_papers_cells(report):
    assert judge(50.0, {"ours": 51, "low": 49, "high": 53}) == "within interval"
    assert judge(50.0, {"ours": 48, "low": 47, "high": 49}) == "below"
    assert judge(50.0, {"ours": 52, "low": 51, "high": 53}) == "above"
    assert set(report["paper"]["verdict"]) == {"not comparable"} and len(report["paper"]) == 6 * (1 + 2 * 3)
    assert unlike("llava15_7b", "POPE", "vanilla", 576, None, None) == "F1 against accuracy"
    assert unlike("llava15_7b", "POPE", "scope", 16, None, None) == ""


def test_an_empty_folder_is_one_line_and_status_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no finished point below" in capsys.readouterr().err


def test_changed_hyper_parameters_are_named_and_seeds_are_one_point(tmp_path):
    asked = questions(20, 2)
    write_point(tmp_path, "vanilla", PATCHES, answers(asked, PATCHES, 1.0, 0, full=True))
    write_point(tmp_path, "acgr_tatcs", 16, answers(asked, 16, 0.9, 1))
    write_point(tmp_path, "acgr_tatcs", 16, answers(asked, 16, 0.9, 2), text="none", layers=[0.5])
    runs = [answers(asked, 16, 0.2, seed) for seed in range(3)]
    for seed, table in enumerate(runs):
        write_point(tmp_path, "random", 16, table, **({"seed": seed} if seed else {}))
    write_report(tmp_path, figures=False)
    summary = pd.read_csv(tmp_path / "summary.csv").query("task == 'average'").set_index("method")
    assert set(summary.index) == {"vanilla", "acgr_tatcs", "acgr_tatcs (layers=[0.5], text=none)", "random"}
    means = [np.mean(list(task_scores(table).values())) for table in runs]
    assert summary.loc["random", "score"] == pytest.approx(np.mean(means), abs=0.006)
    spread = pd.read_csv(tmp_path / "seeds.csv").query("task == 'average'").iloc[0]
    assert spread["seeds"] == 3 and spread["sd"] == pytest.approx(np.std(means, ddof=1), abs=1e-4)
    assert (spread["least"], spread["most"]) == pytest.approx((min(means), max(means)), abs=1e-4)
    points = pd.read_csv(tmp_path / "points.csv").set_index("method")
    kappa = np.mean([table["shift_gaussian_kl"].mean() for table in runs])
    assert points.loc["random", "gaussian_kl"] == pytest.approx(kappa, rel=1e-4)
    assert "Spread over seeds" in (tmp_path / "report.md").read_text()
    table = ablation_table(tmp_path)
    assert "| *default* |" in table and "| layers=[0.5], text=none |" in table and "random" not in table


@pytest.fixture(scope="module")
def paper_model(tmp_path_factory):
    """A record as LLaVA-1.5-7B on the official tasks would leave it, with scores of the paper's size."""
    folder, asked = tmp_path_factory.mktemp("paper"), questions(150, 2, OFFICIAL)
    for method, budget, share in (("vanilla", 576, 0.75), ("scope", 16, 0.769), ("acgr_tatcs", 16, 0.5)):
        shuffled = np.random.default_rng(budget).permutation(300)
        right = np.tile((shuffled < share * 300) * 1.0, len(OFFICIAL))  # the same share in every task
        table = answers(asked, budget, 1.0, 0, full=budget == 576).assign(score=right)
        write_point(folder, method, budget, table, model="llava15_7b")
    for file in folder.rglob("metrics.json"):
        facts = json.loads(file.read_text())
        facts["tasks"] = {
            "mme": {"metrics": {"mme_perception_score": 1200.0, "mme_cognition_score": 300.0}},
            "pope": {"metrics": {"pope_f1_score": 0.853}},
        }
        file.write_text(json.dumps(facts))
    return folder


def test_the_papers_model_is_judged_cell_by_cell(paper_model):
    write_report(paper_model, figures=False)
    cells = pd.read_csv(paper_model / "paper.csv").set_index(["method", "budget", "column"])
    pope, sqa, mme = (cells.loc[("scope", 16, column)] for column in ("POPE", "SQA", "MME"))
    assert pope["verdict"] == "within interval" and pope["low"] < 76.9 < pope["high"]
    assert sqa["verdict"] == "above" and sqa["low"] > sqa["paper"] == 68.2
    assert mme["ours"] == pytest.approx(1500) and mme["difference"] == pytest.approx(1500 - 1562)
    assert cells.loc[("acgr_tatcs", 16, "POPE"), "verdict"] == "below"
    assert cells.loc[("vanilla", 576, "POPE"), "why"] == "F1 against accuracy (our F1 is 85.3)"
    assert cells.loc[("scope", 16, "avg_percent"), "why"] == "its POPE ratio is accuracy over F1"
    text = (paper_model / "report.md").read_text()
    assert "| scope | 16 | POPE | 76.9 |" in text and "| within interval |" in text


def test_a_cell_prints_its_verdict(paper_model, sweep_folder):
    lines = verdicts(paper_model / "llava15_7b" / "test" / "scope" / "16").splitlines()
    (pope,) = (line for line in lines if line.startswith("POPE"))
    assert pope.split()[3] == "76.9" and pope.endswith("pass: the paper's number lies in our 95 % interval")
    assert float(pope.split()[4]) == pytest.approx(float(pope.split()[1]) - 76.9, abs=0.11)
    assert 0.5 < float(pope.split()[2]) < 5  # the standard error
    other = verdicts(sweep_folder / "mini" / "test" / "visionzip" / "32")
    assert "not comparable: another model (mini)" in other
    assert (
        verdicts(sweep_folder / "mini" / "test" / "random" / "16") == "the paper has no cell for random at 16 tokens"
    )


def test_many_methods_get_panels_and_the_full_budget_is_no_shift(tmp_path):
    methods = {f"m{i}": i / 12 for i in range(10)} | {"acgr_tatcs": 0.95}
    write_sweep(tmp_path, methods, (16, 64, PATCHES), images=6, each=1)
    write_report(tmp_path)
    made = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert {"ranking", "shift_accuracy_methods", "overlap_16"} <= made and "overlap_64" not in made
    assert pd.read_csv(tmp_path / "tests.csv")["budget"].max() == 64
    found = pd.read_csv(tmp_path / "shift_correlation.csv").query("scope == 'across points'")
    assert set(found["n"]) == {2 * len(methods)}
    svg = (tmp_path / "figures" / "accuracy_budget.svg").read_text()
    assert all(f">{method}<" in svg for method in methods)  # a titled panel each
    order = methods_table(tmp_path).splitlines()[2:]
    points = pd.read_csv(tmp_path / "points.csv").query("budget == 16").sort_values("accuracy", ascending=False)
    shown = [row.split("`")[1] for row in order[:11]]
    assert list(points.set_index("method").loc[shown, "accuracy"]) == list(points["accuracy"])
