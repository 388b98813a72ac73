"""Scores, intervals and correlations against the paper's rows, scipy, closed forms and simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from eval.correlation import KINDS, between_points, between_samples, weighted, within_units
from eval.paper import COLUMNS, PAPER, TABLES
from eval.scores import average_percent, task_score, task_scores
from eval.statistics import holm, mcnemar, paired_difference, score_interval


def frame(score, image, task="t", pair=None):
    return pd.DataFrame({"task": task, "image_id": image, "score": score, "pair_id": pair})


@pytest.mark.parametrize("file", TABLES.values())
def test_average_percent_reproduces_every_row_of_the_paper(file):
    rows = pd.read_csv(PAPER / file).set_index("method")
    vanilla = rows.loc["vanilla", list(COLUMNS)].to_dict()
    for _, row in rows.iterrows():
        assert average_percent(row[list(COLUMNS)].to_dict(), vanilla) == pytest.approx(row["avg_percent"], abs=0.15)


def test_task_score_of_pairs_and_of_failed_samples():
    assert task_score(frame([1, 0, 1, None], list("aabb"))) == 50
    pairs = frame([1, 1, 1, 0, 0, 0, 1, 1], list("aabbccaa"), pair=list("ppppppqq"))
    assert task_score(pairs) == 50 * (5 / 8 + 2 / 4)  # a pair lies in one image: a-p, b-p, c-p, a-q
    two = pd.concat([frame([1, 0], ["a", "b"], "x"), frame([1, 1], ["a", "b"], "y")])
    assert task_scores(two) == {"x": 50, "y": 100}


def test_interval_covers_the_truth_in_95_percent_of_simulations():
    rng, hit, runs = np.random.default_rng(0), 0, 800
    for seed in range(runs):
        image = np.repeat(np.arange(120), 4)
        chance = rng.beta(2, 1, 120)[image]  # mean 2/3; questions on one image go together
        low, high = score_interval(frame((rng.random(480) < chance) * 1.0, image), draws=400, seed=seed)
        hit += low <= 200 / 3 <= high
    assert 0.93 <= hit / runs <= 0.97


def test_interval_counts_images_not_questions():
    rng = np.random.default_rng(1)
    score = (rng.random(400) < 0.7) * 1.0
    once = score_interval(frame(score, np.arange(400)), draws=4000)
    copied = score_interval(frame(np.tile(score, 9), np.tile(np.arange(400), 9)), draws=4000)
    assert copied == once
    half = stats.norm.ppf(0.975) * 100 * score.std() / 20
    assert (once.high - once.low) / 2 == pytest.approx(half, rel=0.05)


def test_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 300)) < [[0.8], [0.7]]) * 1.0
    found = paired_difference(frame(a, np.arange(300)), frame(b, np.arange(300)), draws=8000)["t"]
    truth = stats.ttest_rel(a, b)
    assert found.estimate == pytest.approx(100 * (a - b).mean())
    assert found.p == pytest.approx(truth.pvalue, rel=0.15)
    ends = 100 * np.array(truth.confidence_interval())
    assert (found.low, found.high) == pytest.approx(ends, abs=0.6)


def test_paired_difference_matches_rows_by_document_and_knows_the_average():
    rng = np.random.default_rng(3)
    base = pd.concat([frame((rng.random(200) < 0.9) * 1.0, np.arange(200), task) for task in "xy"], ignore_index=True)
    base["doc_id"] = np.arange(400)
    worse = base.assign(score=np.where((base["task"] == "x") & (base["doc_id"] % 4 == 0), 0.0, base["score"]))
    gap = paired_difference(worse.sample(frac=1, random_state=0), base, vanilla=base)
    assert gap["y"].estimate == 0 and gap["y"].p == 1
    scores, full = task_scores(worse), task_scores(base)
    assert gap["average"].estimate == pytest.approx(average_percent(scores, full) - 100)
    assert gap["average"].low < gap["average"].estimate < gap["average"].high < 0
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(worse, base[:-1])


def test_mcnemar_is_the_binomial_test_and_holm_steps_down():
    a, b = np.array([1] * 12 + [0] * 3 + [1] * 40), np.array([0] * 12 + [1] * 3 + [1] * 40)
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert mcnemar(a, a) == 1
    p = np.random.default_rng(6).random(50) ** 4
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01, 0.03]), [0.06, np.nan, 0.03, 0.06])


def scipy_of(kind):
    return {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_correlations_are_scipys(kind):
    rng = np.random.default_rng(4)
    x = rng.integers(0, 12, 90).astype(float)
    y = np.clip(np.round(x / 4 + rng.normal(0, 1, 90)), 0, 3) / 4  # ties in both
    truth = scipy_of(kind)(x, y).statistic
    assert between_points(x, y, np.arange(90), kind, draws=50).value == pytest.approx(truth, abs=1e-12)
    assert between_samples(x, y, np.arange(90), kind, draws=50).value == pytest.approx(truth, abs=1e-12)
    weights = rng.integers(0, 3, (1, 90))
    again = scipy_of(kind)(np.repeat(x, weights[0]), np.repeat(y, weights[0])).statistic
    assert weighted(x, y, weights.astype(float), kind)[0] == pytest.approx(again, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_linearised_interval_is_that_of_the_full_bootstrap(kind):
    rng = np.random.default_rng(5)
    image = np.repeat(np.arange(150), 4)
    mood = rng.normal(0, 1, 150)[image]
    x = mood + rng.normal(0, 1, 600)
    y = (rng.random(600) < stats.norm.cdf(0.8 * x + 0.5 * mood)) * 1.0
    fast = between_samples(x, y, image, kind, draws=4000)
    full = between_points(x, y, image, kind, draws=1000)
    assert (fast.low, fast.high) == pytest.approx((full.low, full.high), abs=0.01)
    assert full.high - full.low > 0.08  # the tolerance above is small beside the interval


def test_within_units_is_blind_to_what_lies_between_them():
    unit = np.repeat(["a", "b", "c", "d"], 5)
    step = np.tile(np.arange(5.0), 4)
    offset = np.repeat([0.0, 100, 200, 300], 5)
    found = within_units(step + offset, offset - step, unit, "spearman")
    assert found.value == found.low == found.high == -1 and found.units == 4
    assert between_points(step + offset, offset - step, unit, "pearson").value > 0.9


def test_paired_difference_covers_the_truth_and_keeps_its_level_in_simulations():
    """Two methods that differ by 5 points, and two that do not: questions of an image go together."""
    rng, hit, false, runs = np.random.default_rng(7), 0, 0, 600
    image = np.repeat(np.arange(100), 3)
    for seed in range(runs):
        luck = rng.beta(4, 2, 100)[image] * 0.9  # mean 0.6
        a, b, c = ((rng.random(300) < luck + gap) * 1.0 for gap in (0.05, 0.0, 0.0))
        gap = paired_difference(frame(a, image), frame(b, image), draws=300, seed=seed)["t"]
        hit += gap.low <= 5 <= gap.high
        false += paired_difference(frame(b, image), frame(c, image), draws=300, seed=seed)["t"].p < 0.05
    assert 0.93 <= hit / runs <= 0.97
    assert 0.03 <= false / runs <= 0.07


@pytest.mark.parametrize("kind", KINDS)
def test_interval_of_a_correlation_covers_the_truth_in_simulations(kind):
    """Normal pairs with correlation 0.5: Spearman's rho and Kendall's tau have closed forms (Kruskal 1958)."""
    r = 0.5
    truth = {"pearson": r, "spearman": 6 / np.pi * np.arcsin(r / 2), "kendall": 2 / np.pi * np.arcsin(r)}[kind]
    rng, hit, runs = np.random.default_rng(8), 0, 400
    for _ in range(runs):
        x = rng.normal(size=150)
        y = r * x + np.sqrt(1 - r * r) * rng.normal(size=150)
        y = np.round(y, 2)  # what `between_samples` rounds to for Kendall
        found = between_samples(x, y, np.arange(150), kind, draws=300)
        hit += found.low <= truth <= found.high
    assert 0.92 <= hit / runs <= 0.98
