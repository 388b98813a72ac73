"""TATCS, Text-Aware Token Cluster Selection: one token a cluster where a plain ranking would shift too much."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.base import Pruner
from pruning.coverage import headroom, lazy_greedy
from pruning.errors import InputError, one_of
from pruning.ops import by_parts, cosine, gram, standardise, top
from pruning.shift import known, shift
from pruning.tokens import Question, VisualTokens

TRIGGERS = ("always", "never", "kappa")
TEXTS = ("embeddings", "clip", "none")
LARGEST = 60.0  # logarithm of a weight; sums of larger ones would leave float32


@dataclass
class Tatcs(Pruner):
    """Clusters the last layer's tokens by content and by what the question asks, and keeps one token a cluster.

    Source: DCP-Prune, arXiv 2606.16633, overview figure: only where severe shift is detected; greedy
    representatives, text-aware semantic similarity, cluster reselection. Every formula and number is a
    *reconstruction*; each has its switch here.

    Args:
        trigger: `kappa` clusters where the plain top-K shifts by more than `threshold`; `always`, `never`
            (*reconstruction*).
        metric: which of `pruning.shift` kappa is (*reconstruction*).
        threshold: kappa above which the shift is severe (*reconstruction*).
        text: `embeddings` compares projected tokens with the question's words, `none` leaves the text out; `clip`
            compares in CLIP's joint space where its text tower is given, and is `embeddings` where it is not
            (*reconstruction*).
        beta: weight of the text profile in the similarity (*reconstruction*).
        saliency: exponent of the CLS attention in a token's weight (*reconstruction*).
        gamma: strength of the text relevance in a token's weight (*reconstruction*).
        iterations: most rounds of assignment and reselection; 0 keeps the greedy representatives
            (*reconstruction*).

    Raises:
        InputError: a value out of its range.
    """

    trigger: str = "kappa"
    metric: str = "gaussian_kl"
    threshold: float = 0.1
    text: str = "embeddings"
    beta: float = 0.5
    saliency: float = 0.5
    gamma: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        known(self.metric)
        one_of("trigger", self.trigger, TRIGGERS)
        one_of("text", self.text, TEXTS)
        for name in ("beta", "saliency", "gamma", "iterations"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        self.reads_question = self.text != "none" and self.trigger != "never"  # type: ignore[misc]
        self.reads_clip = self.reads_question and self.text == "clip"  # type: ignore[misc]

    def score(self, tokens: VisualTokens, question: Question | None) -> Tensor:
        """(B, n) the plain ranking; blind to the question, as it is made once an image."""
        return tokens.cls_attention.mean(1)

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        """The plain top-K where its shift is mild, else the clusters' representatives: (B, n, D) -> (B, K, D).

        A token weighs w_i = s_i^saliency exp(gamma r_i): CLS attention s, text relevance r (*reconstruction*).
        """
        plain, kappa = tokens.once(self.plainly)  # (B, K), (B,)
        if self.trigger == "kappa":
            severe = kappa > self.threshold
        else:
            severe = torch.full_like(kappa, self.trigger == "always", dtype=torch.bool)
        trace = {**tokens.trace, "kappa_topk": kappa, "triggered": severe}
        rows = severe.nonzero()[:, 0]
        if not len(rows):
            return replace(tokens.gather(plain), trace=trace)
        chosen, mine = self.clusters(tokens.rows(rows), None if question is None else question.rows(rows))
        none = plain.new_full((len(plain), tokens.patches), -1)
        trace["cluster"] = none.index_copy(0, rows, none[rows].scatter(1, tokens.index[rows], mine))
        return replace(tokens.gather(plain.index_copy(0, rows, chosen)), trace=trace)

    def plainly(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """The plain top-K (B, K), and the shift (B,) that it would bring."""
        plain = top(self.score(tokens, None), self.keeps(tokens.patches))
        return plain, shift(tokens.gather(plain).hidden, tokens.hidden, self.metric)

    def clusters(self, tokens: VisualTokens, question: Question | None) -> tuple[Tensor, Tensor]:
        """Representatives (B, K), and the patch of each token's representative (B, n)."""
        profile, relevance = text_profile(*self.words(tokens, question))
        (content,) = tokens.once(lambda own: (gram(own.hidden.float()),))
        saliency = tokens.cls_attention.mean(1)
        told = self.gamma * relevance
        told = told - (told.amax(1, keepdim=True) - LARGEST).clamp(min=0)  # weights count by their ratios only
        weight = saliency.clamp(min=0) ** self.saliency * told.exp()
        similar = text_aware(content, profile, self.beta)
        chosen, owner = cluster(similar, weight, self.keeps(tokens.patches), self.iterations)
        return chosen, tokens.index.gather(1, chosen.gather(1, owner))

    def words(self, tokens: VisualTokens, question: Question | None) -> tuple[Tensor, Tensor]:
        """Cosine of each token with each of T words, (B, n, T) float32, and which words count, (B, T) bool.

        In CLIP's joint space the words are the T text vectors of its tower. No text is one word that does not count.
        """
        if question is None or self.text == "none":
            none = torch.zeros_like(tokens.index[:, :1], dtype=torch.bool)
            return tokens.hidden.new_zeros(*tokens.hidden.shape[:2], 1).float(), none
        if self.text == "clip" and question.clip_is_real:
            every = torch.ones(question.clip.shape[:2], dtype=torch.bool, device=question.clip.device)
            return cosine(tokens.read("clip"), question.clip), every
        return cosine(tokens.projected, question.embeddings), question.content


def text_profile(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the question's words make of each token (*reconstruction*).

    Args:
        words: cosines (B, n, T).
        mask: words that count (B, T); a row without any gives zeros, so that the text plays no part there.

    Returns:
        The centred profile u (B, n, T), and the relevance max_t u, standardised over the tokens, (B, n).
    """
    profile = (words - words.mean(1, keepdim=True)) * mask[:, None]
    best = profile.masked_fill(~mask[:, None], -torch.inf).amax(2)
    relevance = torch.where(mask.any(1, keepdim=True), best, 0.0)
    return profile, standardise(relevance)


@by_parts
def text_aware(content: Tensor, profile: Tensor, beta: float) -> Tensor:
    """S_ij = (cos(x_i, x_j) + beta cos(u_i, u_j)) / (1 + beta) (*reconstruction*): (B, n, n).

    The cosines of content (B, n, n) are given. Rows whose profile (B, n, T) is empty use the content alone.
    """
    told = (profile != 0).any(2).any(1)  # (B,)
    share = torch.where(told, beta, 0.0)[:, None, None]
    return (content + share * gram(profile)) / (1 + share)


def cluster(similar: Tensor, weight: Tensor, k: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Representatives (B, K) and the cluster of each token (B, n), numbered by representative (*reconstruction*).

    Similarities (B, n, n), weights (B, n). Assignment and reselection alternate until no representative changes, at
    most `iterations` times. Images that are stable stay so while others go on, hence the result of an image does not
    depend on its batch.
    """
    chosen = representatives(similar, weight, k)
    owner = assign(similar, chosen)
    for _ in range(iterations):
        again = reselect(similar, weight, owner, k)
        if torch.equal(again, chosen):
            break
        chosen = again
        owner = assign(similar, chosen)
    return chosen, owner


@by_parts
def representatives(similar: Tensor, weight: Tensor, k: int) -> Tensor:
    """Greedy maximisation of the weighted facility-location coverage (*reconstruction*): (B, n, n) -> (B, K).

    K times the token i with the largest gain sum_j w_j max(0, S_ij - cover_j), cover_j the best similarity of j to a
    chosen token, 0 at first; ties go to the lowest slot.
    """
    return lazy_greedy(similar, lambda c, rows: (headroom(similar, c, rows) * weight[:, None]).sum(-1), k)


def assign(similar: Tensor, chosen: Tensor) -> Tensor:
    """Each token to its most similar representative, a representative to itself (*reconstruction*).

    Similarities (B, n, n) and slots (B, K) -> (B, n) in 0..K-1.
    """
    to = similar.gather(2, chosen[:, None].expand(-1, similar.shape[1], -1))  # (B, n, K)
    own = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    return to.argmax(2).scatter(1, chosen, own)


def reselect(similar: Tensor, weight: Tensor, owner: Tensor, k: int) -> Tensor:
    """In each cluster the token with the largest w_i * mean_{j in cluster} S_ij (*reconstruction*): -> (B, K)."""
    order = top(weight * closeness(similar, owner), owner.shape[1])  # (B, n) best first
    rank = order.argsort(1)
    best = rank.new_zeros(len(rank), k).scatter_reduce(1, owner, rank, "amin", include_self=False)
    return order.gather(1, best)


@by_parts
def closeness(similar: Tensor, owner: Tensor) -> Tensor:
    """Mean similarity of each token to its cluster: (B, n, n), (B, n) -> (B, n)."""
    same = owner[:, :, None] == owner[:, None]  # (B, n, n)
    return torch.where(same, similar, 0.0).sum(2) / same.sum(2)
