"""ACGR and TATCS: the properties of each numbered step, each against a naive loop, and the two stages together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pruning
from pruning import InputError, Question, VisualTokens
from pruning.acgr import context_graph, distinct, falling, partition, recover, strongest
from pruning.ops import centres, gram
from pruning.shift import shift
from pruning.tatcs import assign, cluster, representatives, reselect, text_aware, text_profile

N, WIDTH, DEPTH = 576, 24, 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_tokens(b: int = 3, seed: int = 0) -> VisualTokens:
    hidden = noise(b, N, WIDTH, seed=seed) + 2 * noise(b, 24, WIDTH, seed=seed + 1).repeat_interleave(24, 1)
    attention = (2 * noise(b, 4, N, seed=seed + 2)).softmax(-1)
    features = {"cls_attention": attention, "projected": hidden @ noise(WIDTH, 16, seed=9)}
    return VisualTokens(hidden, torch.arange(N).expand(b, -1), (24, 24), features=features)


def make_question(b: int = 3) -> Question:
    """Six words an image, the last two no content; the last image has none at all."""
    content = torch.tensor([1, 1, 1, 1, 0, 0], dtype=torch.bool).repeat(b, 1)
    content[-1] = False
    return Question(noise(b, 6, 16, seed=5), torch.ones(b, 6, dtype=torch.bool), content)


def run(method: pruning.Pruner, tokens: VisualTokens, question: Question | None) -> VisualTokens:
    """The method over a tower whose blocks change nothing."""
    for layer, keep in method.schedule(DEPTH, N).items():
        tokens = method.reduce_at(layer, tokens, keep)
        assert tokens.count == keep
        tokens = replace(tokens, features={**tokens.features, "projected": tokens.hidden @ noise(WIDTH, 16, seed=9)})
    return method.finish(tokens, question)


def row(tokens: VisualTokens, b: int) -> VisualTokens:
    features = {name: x[b : b + 1] for name, x in tokens.features.items()}
    return replace(tokens, hidden=tokens.hidden[b : b + 1], index=tokens.index[b : b + 1], features=features)


# --- ACGR -----------------------------------------------------------------------------------------------------
def graph(tau: float | None, sigma: float | None) -> tuple[Tensor, list[list[list[float]]]]:
    """Logits of 7 contexts and 5 anchors, and the same by the formula, entry by entry."""
    c, a, pc, pa = noise(2, 7, 6), noise(2, 5, 6, seed=1), noise(2, 7, 2, seed=2), noise(2, 5, 2, seed=3)

    def entry(b: int, i: int, j: int) -> float:
        x, y = c[b, i].double(), a[b, j].double()
        value = 0.0 if tau is None else float(x @ y / x.norm() / y.norm()) / tau
        return value - (0.0 if sigma is None else float(((pc[b, i] - pa[b, j]) ** 2).sum()) / (2 * sigma**2))

    loop = [[[entry(b, i, j) for j in range(5)] for i in range(7)] for b in range(2)]
    return context_graph(c, a, pc, pa, tau, sigma), loop


@pytest.mark.parametrize("terms", [(0.1, 0.3), (0.2, None), (None, 0.2)])
def test_graph_is_the_formula(terms: tuple[float | None, float | None]) -> None:
    logits, loop = graph(*terms)
    torch.testing.assert_close(logits, torch.tensor(loop), rtol=1e-4, atol=1e-4)


def test_edges_are_the_strongest_and_rows_sum_to_one() -> None:
    logits = noise(2, 7, 5)
    weight, slot = strongest(logits, 3)
    assert weight.shape == (2, 7, 3) and (weight > 0).all()
    torch.testing.assert_close(weight.sum(2), torch.ones(2, 7))
    for b in range(2):
        for c in range(7):
            best = sorted(range(5), key=lambda a: -logits[b, c, a])[:3]
            assert slot[b, c].tolist() == best
            total = sum(math.exp(logits[b, c, a]) for a in best)
            assert weight[b, c].tolist() == pytest.approx([math.exp(logits[b, c, a]) / total for a in best], rel=1e-5)


def test_recovery_is_the_formula_and_a_convex_combination() -> None:
    anchors, contexts = noise(1, 4, 6), noise(1, 9, 6, seed=1)
    slot = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 1], [1, 2], [0, 1], [2, 0], [0, 2], [1, 0]])[
        None
    ]  # anchor 3: none
    weight = noise(1, 9, 2, seed=2).softmax(-1)
    plain, scaled = (recover(anchors, contexts, weight, slot, 0.5, keep) for keep in (False, True))
    for a in range(3):
        mass = sum(weight[0, c, r] for c in range(9) for r in range(2) if slot[0, c, r] == a)
        flow = sum(weight[0, c, r] * contexts[0, c] for c in range(9) for r in range(2) if slot[0, c, r] == a)
        beta = 0.5 * mass / (1 + mass)
        expected = (1 - beta) * anchors[0, a] + beta * flow / mass
        torch.testing.assert_close(plain[0, a], expected)
        torch.testing.assert_close(scaled[0, a], expected / expected.norm() * anchors[0, a].norm())
    many = noise(1, 64, 6, seed=3)  # anchors 3 and up are isolated, and stay themselves to the last bit
    for keep in (False, True):
        assert torch.equal(recover(many, contexts, weight, slot, 0.5, keep)[0, 3:], many[0, 3:])
    same = torch.ones(1, 4, 6)  # a convex combination of equal points is that point
    torch.testing.assert_close(recover(same, torch.ones(1, 9, 6), weight, slot, 1.0, False), same)
    assert torch.equal(recover(anchors, contexts, weight, slot, 0.0, False), anchors)


def test_partition_and_counts() -> None:
    anchors, contexts = partition(torch.tensor([[0.1, 0.5, 0.5, 0.9, 0.0]]), 2)
    assert anchors.tolist() == [[1, 3]] and contexts.tolist() == [[0, 2, 4]]
    assert falling(576, 64, 2, "geometric") == [192, 64]
    assert falling(576, 64, 2, "linear") == [320, 64]


def test_schedule_follows_the_tower_and_the_budget() -> None:
    def schedule(budget: int, depth: int, **changed: Any) -> dict[int, int]:
        return pruning.load("acgr", budget, layers=[0.6, 0.8], survivors=4.0, **changed).schedule(depth, N)

    assert schedule(16, 5) == {2: 192, 3: 64}
    assert schedule(16, 23) == {13: 192, 17: 64}
    assert schedule(200, 5) == {}  # as many survivors as patches: nothing to do inside
    method = pruning.load("acgr", 1)
    for budget in range(1, N + 1):
        counts = list(replace(method, budget=budget).schedule(5, N).values())
        assert counts == sorted(set(counts), reverse=True) and all(budget <= keep < N for keep in counts)
    assert pruning.load("acgr", 16, layers=[1, 3]).schedule(5, N).keys() == {1, 3}
    with pytest.raises(InputError, match="below 5"):
        pruning.load("acgr", 16, layers=[1, 5]).schedule(5, N)


def test_one_stage_end_to_end() -> None:
    """The tower's stage from its own parts, with the patches' numbers after an earlier stage."""
    tokens = make_tokens().gather(torch.arange(5, N, 14).expand(3, -1))
    method = pruning.load("acgr", 4, distinct=False)
    out = method.reduce_at(2, tokens, 12)
    anchors, contexts = partition(tokens.cls_attention.mean(1), 12)
    for b in range(3):
        x, a, c = tokens.hidden[b : b + 1], anchors[b], contexts[b]
        place = centres(tokens.index[b : b + 1], (24, 24))
        weight, slot = strongest(
            context_graph(x[:, c], x[:, a], place[:, c], place[:, a], method.tau, method.sigma), 4
        )
        expected = recover(x[:, a], x[:, c], weight, slot, method.strength, method.keep_norm)
        torch.testing.assert_close(out.hidden[b], expected[0])
        assert out.index[b].tolist() == tokens.index[b, a].tolist()
        gone = tokens.index[b, c]
        assert out.trace["removed_at"][b, gone].eq(2).all() and out.trace["removed_at"][b].ge(0).sum() == len(c)
        assert out.trace["recovered_into"][b, gone].tolist() == tokens.index[b, a[slot[0, :, 0]]].tolist()
        assert out.trace["recovered_mass"][b].sum().item() == pytest.approx(len(c), rel=1e-5)


def test_distinct_equals_the_naive_loop() -> None:
    saliency, x = noise(2, 12, seed=3).exp(), noise(2, 12, 5, seed=4)
    out = distinct(saliency, x, 2.0)
    for b in range(2):
        u = torch.nn.functional.normalize(x[b] - x[b].mean(0), dim=-1)
        for i in range(12):
            above = [max(float(u[i] @ u[j]), 0.0) for j in range(12) if saliency[b, j] > saliency[b, i]]
            expected = float(saliency[b, i]) ** 0.5 * (1 - max(above, default=0.0) ** 2)
            assert out[b, i].item() == pytest.approx(expected, abs=1e-5)


# --- TATCS ----------------------------------------------------------------------------------------------------
def cloud(n: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities (2, n, n), some of them negative, and weights (2, n)."""
    x = torch.nn.functional.normalize(noise(2, n, 5, seed=seed), dim=-1)
    return x @ x.mT, noise(2, n, seed=seed + 1).exp()


@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_the_naive_loop(seed: int) -> None:
    similar, weight = cloud(seed=10 * seed)
    for b, chosen in enumerate(representatives(similar, weight, 8).tolist()):
        picked: list[int] = []
        for _ in range(8):
            cover = [max([0.0] + [float(similar[b, p, j]) for p in picked]) for j in range(20)]
            gains = {
                i: sum(float(weight[b, j]) * max(0.0, float(similar[b, i, j]) - cover[j]) for j in range(20))
                for i in range(20)
                if i not in picked
            }
            picked.append(max(gains, key=lambda i: gains[i]))
        assert chosen == picked


@pytest.mark.parametrize("seed", range(3))
def test_assignment_and_reselection_equal_the_naive_loop(seed: int) -> None:
    similar, weight = cloud(seed=10 * seed)
    chosen = representatives(similar, weight, 5)
    owner = assign(similar, chosen)
    again = reselect(similar, weight, owner, 5)
    for b in range(2):
        reps = chosen[b].tolist()
        own = [max(range(5), key=lambda k: float(similar[b, reps[k], j])) for j in range(20)]
        assert owner[b].tolist() == own
        for k in range(5):
            members = [j for j in range(20) if own[j] == k]
            worth = {
                i: float(weight[b, i]) * sum(float(similar[b, i, j]) for j in members) / len(members) for i in members
            }
            assert again[b, k] == max(worth, key=lambda i: worth[i])


def test_reselection_prefers_weight_and_centrality() -> None:
    similar = torch.tensor([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.8], [0.1, 0.8, 1.0]]])
    one = torch.zeros(1, 3, dtype=torch.long)
    assert reselect(similar, torch.ones(1, 3), one, 1).item() == 1
    assert reselect(similar, torch.tensor([[1.0, 1, 2]]), one, 1).item() == 2


def test_equal_tokens_still_make_k_clusters() -> None:
    chosen, owner = cluster(torch.ones(1, 9, 9), torch.ones(1, 9), 4, 3)
    assert chosen.unique().numel() == 4 and owner.unique().numel() == 4


def test_iterations_end_when_stable_and_zero_keeps_the_greedy_set() -> None:
    similar, weight = cloud(40, seed=3)
    greedy = representatives(similar, weight, 6)
    assert torch.equal(cluster(similar, weight, 6, 0)[0], greedy)
    once = reselect(similar, weight, assign(similar, greedy), 6)
    assert torch.equal(cluster(similar, weight, 6, 1)[0], once) and not torch.equal(once, greedy)
    stable, owner = cluster(similar, weight, 6, 100)
    assert torch.equal(reselect(similar, weight, owner, 6), stable)


def test_text_profile_and_similarity_are_the_formula() -> None:
    hidden, words = noise(2, 8, 5), noise(2, 8, 4, seed=1).tanh()
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    profile, relevance = text_profile(words, mask)
    similar = text_aware(gram(hidden), profile, 0.5)
    cosine = torch.nn.functional.cosine_similarity
    u = words[0][:, mask[0]] - words[0][:, mask[0]].mean(0)
    r = u.amax(1)
    torch.testing.assert_close(relevance[0], (r - r.mean()) / r.std(unbiased=False))
    for i in range(8):
        for j in range(8):
            seen = cosine(hidden[0, i], hidden[0, j], dim=0)
            expected = (seen + 0.5 * cosine(u[i], u[j], dim=0)) / 1.5
            torch.testing.assert_close(similar[0, i, j], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(similar[1, i, j], cosine(hidden[1, i], hidden[1, j], dim=0))  # no words
    assert relevance[1].eq(0).all()


def test_selection_is_built_from_its_parts() -> None:
    """Every part in its place: saliency power, relevance, similarity, greedy, reselection."""
    tokens, question = make_tokens(), make_question()
    method = pruning.load("tatcs", 12, trigger="always", saliency=0.7, gamma=1.5, beta=0.8, iterations=2)
    out = method.finish(tokens, question)
    words = (
        torch.nn.functional.normalize(tokens.projected, dim=-1)
        @ torch.nn.functional.normalize(question.embeddings, dim=-1).mT
    )
    profile, relevance = text_profile(words, question.content)
    weight = tokens.cls_attention.mean(1) ** 0.7 * (1.5 * relevance).exp()
    chosen, owner = cluster(text_aware(gram(tokens.hidden), profile, 0.8), weight, 12, 2)
    assert torch.equal(out.index, chosen.sort(1).values)
    assert torch.equal(out.trace["cluster"], chosen.gather(1, owner))
    assert out.trace["triggered"].all()


def test_the_question_and_every_switch_matter() -> None:
    tokens, question = make_tokens(), make_question()

    def kept(**changed: Any) -> Tensor:
        return pruning.load("tatcs", 16, **{"trigger": "always", **changed}).finish(tokens, question).index

    base = kept()
    for changed in ({"gamma": 0.0}, {"beta": 0.0}, {"saliency": 0.0}, {"iterations": 0}):
        assert not torch.equal(kept(**changed)[0], base[0]), changed
    textless = kept(text="none")
    assert not torch.equal(textless[0], base[0])
    assert torch.equal(textless[2], base[2])  # the image whose question has no content words
    none = pruning.load("tatcs", 16, text="none", trigger="always").finish(tokens)
    assert torch.equal(none.index, textless)


@pytest.mark.parametrize("gamma", [20.0, 1000.0])
def test_a_text_weight_beyond_all_numbers_still_keeps_different_tokens(gamma: float) -> None:
    out = pruning.load("tatcs", 300, trigger="always", gamma=gamma).finish(make_tokens(), make_question())
    assert out.hidden.isfinite().all() and all(len(set(row)) == 300 for row in out.index.tolist())


# --- trigger and both stages ------------------------------------------------------------------------------------
def test_trigger_decides_image_by_image() -> None:
    tokens, question = make_tokens(), make_question()
    plain = pruning.load("cls_attention", 16).finish(tokens)
    kappa = shift(plain.hidden, tokens.hidden)
    never, always = (pruning.load("tatcs", 16, trigger=t).finish(tokens, question) for t in ("never", "always"))
    assert torch.equal(never.index, plain.index) and not never.trace["triggered"].any()
    assert pruning.load("tatcs", 16, trigger="never").finish(tokens).count == 16  # needs no question
    threshold = kappa.sort().values[1].item() + 1e-6  # exactly one image shifts more
    mixed = pruning.load("tatcs", 16, threshold=threshold).finish(tokens, question)
    torch.testing.assert_close(mixed.trace["kappa_topk"], kappa)
    assert mixed.trace["triggered"].tolist() == (kappa > threshold).tolist() and mixed.trace["triggered"].sum() == 1
    for b, severe in enumerate(mixed.trace["triggered"].tolist()):
        assert torch.equal(mixed.index[b], (always if severe else never).index[b])
        assert (mixed.trace["cluster"][b] >= 0).all() == severe
    energy = pruning.load("tatcs", 16, metric="energy").finish(tokens, question).trace["kappa_topk"]
    torch.testing.assert_close(energy, shift(plain.hidden, tokens.hidden, "energy"))


def test_acgr_ends_in_the_top_of_the_survivors_and_its_trace_survives() -> None:
    tokens, question = make_tokens(), make_question()
    acgr = run(pruning.load("acgr", 16, distinct=False, survivors=4.0), tokens, None)
    expected = tokens.cls_attention.mean(1).topk(16).indices.sort(1).values  # one attention row for all layers here
    assert torch.equal(acgr.index, expected)
    both = run(pruning.load("acgr_tatcs", 16, trigger="always", distinct=False, survivors=4.0), tokens, question)
    assert torch.equal(both.trace["removed_at"], acgr.trace["removed_at"])
    stayed = both.trace["removed_at"] < 0
    assert stayed.sum(1).eq(64).all() and torch.equal(both.trace["cluster"] >= 0, stayed)
    assert torch.equal(both.trace["recovered_into"] < 0, stayed)
    for b in range(3):
        assert both.trace["cluster"][b][stayed[b]].unique().tolist() == both.index[b].tolist()
        into = both.trace["recovered_into"][b][~stayed[b]]
        when, whither = both.trace["removed_at"][b][~stayed[b]], both.trace["removed_at"][b][into]
        assert ((whither < 0) | (whither > when)).all()  # an anchor leaves later than its contexts, or never
    assert both.trace["recovered_mass"].sum(1).allclose(torch.full((3,), N - 64.0))


def test_without_clusters_the_two_stages_are_acgr_and_without_stages_tatcs() -> None:
    tokens, question = make_tokens(), make_question()
    acgr, tatcs = pruning.load("acgr", 16), pruning.load("tatcs", 16, trigger="always")
    for same, changed in ((acgr, {"trigger": "never"}), (tatcs, {"trigger": "always", "layers": []})):
        out, expected = run(pruning.load("acgr_tatcs", 16, **changed), tokens, question), run(same, tokens, question)
        assert torch.equal(out.index, expected.index) and torch.equal(out.hidden, expected.hidden)


@pytest.mark.parametrize("name", ["acgr", "tatcs", "acgr_tatcs"])
def test_result_does_not_depend_on_the_batch_mates(name: str) -> None:
    tokens, question = make_tokens(), make_question()
    for budget in (1, 16, 64):
        method = pruning.load(name, budget)
        together = run(method, tokens, question)
        for b in range(3):
            asked = Question(question.embeddings[b, None], question.mask[b, None], question.content[b, None])
            alone = run(method, row(tokens, b), asked)
            assert torch.equal(alone.index[0], together.index[b])
            torch.testing.assert_close(alone.hidden[0], together.hidden[b])


@pytest.mark.parametrize("name", ["acgr", "tatcs", "acgr_tatcs"])
@pytest.mark.parametrize("budget", [1, 16, 17, 64, 575, 576])
def test_exactly_k_distinct_patches_in_order(name: str, budget: int) -> None:
    out = run(pruning.load(name, budget), make_tokens(2), make_question(2))
    assert out.hidden.shape == (2, budget, WIDTH)
    assert (out.index.diff(dim=1) > 0).all() and out.index.min() >= 0 and out.index.max() < N


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("acgr", {"tau": 0.0}, "tau"),
        ("acgr", {"sigma": -1.0}, "sigma"),
        ("acgr", {"neighbours": 0}, "neighbours"),
        ("acgr", {"strength": 1.5}, "strength"),
        ("acgr", {"survivors": 0.5}, "survivors"),
        ("acgr", {"layers": [0.8, 0.6]}, "layers"),
        ("acgr", {"layers": [1, 0.6]}, "layers"),
        ("acgr", {"shape": "cubic"}, "cubic"),
        ("acgr", {"semantic": False, "spatial": False}, "no term"),
        ("tatcs", {"trigger": "sometimes"}, "sometimes"),
        ("tatcs", {"metric": "kapa"}, "kapa"),
        ("tatcs", {"text": "bert"}, "bert"),
        ("tatcs", {"beta": -1.0}, "beta"),
        ("acgr_tatcs", {"tau": 0.0}, "tau"),
        ("acgr_tatcs", {"iterations": -1}, "iterations"),
    ],
)
def test_values_out_of_range_are_said(name: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pruning.load(name, 16, **changed)


def test_clip_text_is_read_where_it_is_real_and_else_the_embeddings() -> None:
    tokens, question = make_tokens(), make_question()
    tokens = replace(tokens, features={**tokens.features, "clip": noise(3, N, 8, seed=6)})
    vectors = noise(3, 1, 8, seed=7)

    def kept(text: str, real: bool) -> Tensor:
        asked = replace(question, clip=vectors, clip_is_real=real)
        return pruning.load("tatcs", 16, text=text, trigger="always").finish(tokens, asked).index

    assert torch.equal(kept("clip", real=False), kept("embeddings", real=False))
    assert torch.equal(kept("embeddings", real=True), kept("embeddings", real=False))
    assert not torch.equal(kept("clip", real=True), kept("embeddings", real=True))
    method = pruning.load("tatcs", 16, text="clip")
    words, counts = method.words(tokens, replace(question, clip=vectors, clip_is_real=True))
    cosine = torch.nn.functional.cosine_similarity(tokens.features["clip"], vectors, dim=-1)
    torch.testing.assert_close(words[..., 0], cosine)
    assert counts.tolist() == [[True]] * 3
