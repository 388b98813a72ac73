"""A report of a small sweep whose answer is known."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.paper import judge, unlike
from eval.report import main, write_report
from eval.scores import average_percent, task_scores
from eval.sheet import draw_sheet, most_disputed
from eval.sweep import kept_indices, overlap, read_sweeps
from tests.synthetic_sweep import PATCHES, answers, questions, write_failed, write_point, write_sweep

SKILLS = {"random": 0.1, "downsample": 0.2, "visionzip": 0.5, "acgr_tatcs": 0.95}
BUDGETS = (16, 32, 64)


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, SKILLS, BUDGETS, images=30, each=2)
    write_failed(folder, "pool", 16, "RuntimeError: it broke")
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
    assert set(report["summary"]["method"]) == {"vanilla", *SKILLS}
    for name in ("accuracy_budget", "shift_budget", "shift_accuracy", "time_accuracy", "overlap_16"):
        assert f"figures/{name}.png" in text and (sweep_folder / "figures" / f"{name}.svg").stat().st_size > 2000
        with Image.open(sweep_folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300 and picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)


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
