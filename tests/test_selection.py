"""The shortcuts of the selection against the plain rule, at a width where the shortcuts are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning import ops
from pruning.cdpruner import greedy_map
from pruning.divprune import max_min
from pruning.prunesid import components

N, D = 576, 640


def features(seed: int, twins: int = 0) -> Tensor:
    """Two images (2, N, D) of 9 kinds of patches; the last `twins` patches repeat the first ones exactly."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, N, 9, generator=g).mul(2).softmax(-1)
    x = mixing @ torch.randn(9, D, generator=g) + 0.35 * torch.randn(2, N, D, generator=g)
    return torch.cat([x[:, : N - twins], x[:, :twins]], 1)


def cosines(x: Tensor) -> Tensor:
    u = x / x.norm(dim=1, keepdim=True)
    return u @ u.T


@pytest.mark.parametrize("k", [1, 16, 64, 192])  # 192 takes the whole matrix
def test_divprune_equals_the_plain_rule(k: int) -> None:
    for x, chosen in zip(features(0), max_min(features(0), k)):
        distance = 1 - cosines(x)
        picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(picks) < k:
            picks.append(int(distance[picks].amin(0).argmax()))
        assert chosen.tolist() == picks


def test_divprune_first_pick_among_equals_is_the_lowest() -> None:
    """Each patch has a twin at distance 0 but the two last ones, which are orthogonal to all: equal scores."""
    x = torch.zeros(1, 42, 64)
    x[0, torch.arange(40), torch.arange(40) // 2] = 1.0
    x[0, 40, 50] = x[0, 41, 60] = 1.0
    assert max_min(x, 2).tolist() == [[40, 0]]  # then all are at distance 1


@pytest.mark.parametrize("k", [1, 16, 64])
def test_cdpruner_equals_the_determinants(k: int) -> None:
    x = features(1)
    r = torch.rand(2, N, generator=torch.Generator().manual_seed(2)) + 0.1
    for one, weight, chosen in zip(x, r, greedy_map(x, r, k)):
        kernel = (weight[:, None] * cosines(one.double()) * weight).double()
        picks: list[int] = []
        for _ in range(k):  # the largest determinant that one more token can give, by Schur complements
            block = kernel[picks][:, picks]
            gain = kernel.diagonal() - (kernel[:, picks] @ torch.linalg.pinv(block) * kernel[:, picks]).sum(1)
            gain[picks] = -torch.inf
            picks.append(int(gain.argmax()))
        assert chosen.tolist() == picks


def test_leading_components_equal_the_decomposition() -> None:
    """Also next to images without them: equal patches, and one component only, where the shortcut is refused."""
    x = features(3)
    x = torch.cat([x, x[:1, :1].expand(-1, N, -1), x[:1, :, :1] * x[:1, :1]])
    a = (x - x.mean(2, keepdim=True)).mT  # (4, D, N)
    found = components(a, 8)
    for one, loads in zip(a[:2], found):
        expected = torch.linalg.svd(one.double(), full_matrices=False).Vh[:8].mT
        torch.testing.assert_close(loads.abs(), expected.abs(), rtol=0, atol=1e-7)
    assert found.isfinite().all()
    assert (found[3].abs().argmax(-1) == 0).all()  # one component: one group


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, r = features(4, twins=100), torch.ones(2, N)
    whole = max_min(x, 64), greedy_map(x, r, 64)
    monkeypatch.setattr(ops, "CACHE", 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, (max_min(x, 64), greedy_map(x, r, 64))))


@pytest.mark.parametrize("n", [1, 5, 6, 7, 100])
def test_products_are_all_products(n: int) -> None:
    x = features(5)[:, :n]
    assert torch.equal(ops.products(x), ops.products(x).mT)
    torch.testing.assert_close(ops.products(x), x @ x.mT)
