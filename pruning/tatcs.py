"""TATCS, Text-Aware Token Cluster Selection: cluster the last layer's tokens, keep one of each cluster.

DCP-Prune's second stage (arXiv 2606.16633, overview figure). From the paper: it acts only when a severe distribution
shift is detected; greedy representatives start the clusters; a text-aware semantic similarity assigns the tokens;
cluster reselection picks each cluster's token. Every formula and default is a *reconstruction*, with its switch in
the YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning import shift
from pruning.cls_attention import ClsAttention
from pruning.errors import InputError
from pruning.ops import cosine, standardise, top
from pruning.tokens import Question, VisualTokens, take

TRIGGERS = ("kappa", "always", "never")
TEXTS = ("embeddings", "clip", "none")


@dataclass
class Tatcs(ClsAttention):
    """Clusters where the plain top-K of the CLS attention would shift the distribution, else that top-K.

    Writes into `tokens.trace`: `kappa_topk` (B,) the shift that the top-K would cause, `triggered` (B,) bool, and
    `cluster` (B, N) the kept patch that stands for each surviving patch, -1 for the others.

    Raises:
        InputError: a hyper-parameter out of range; `text: clip` without CLIP text vectors.
    """

    trigger: str = "kappa"
    metric: str = "gaussian_kl"
    threshold: float = 0.1
    text: str = "embeddings"
    beta: float = 0.5
    a: float = 0.5
    gamma: float = 0.5
    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        shift.known(self.metric)
        if self.trigger not in TRIGGERS:
            raise InputError(f"trigger must be one of {', '.join(TRIGGERS)}, got '{self.trigger}'")
        if self.text not in TEXTS:
            raise InputError(f"text must be one of {', '.join(TEXTS)}, got '{self.text}'")
        if self.beta < 0 or self.a < 0 or self.iterations < 0:
            raise InputError(
                f"beta, a and iterations must not be negative, got {self.beta}, {self.a}, {self.iterations}"
            )

    @property
    def reads_question(self) -> bool:  # type: ignore[override]
        """Whether the text takes part."""
        return self.text != "none" and self.trigger != "never"

    def reduce(self, tokens: VisualTokens, question: Question | None) -> VisualTokens:
        score, keep = self.score(tokens, question), self.keeps(tokens.patches)
        plain = top(score, keep)
        kappa = shift.shift(take(tokens.hidden, plain), tokens.hidden, self.metric)
        triggered = self.triggers(kappa)
        chosen, owner = plain, self_owned(plain, tokens.count)
        if triggered.any():  # the rows that need no clusters are computed along: one batch, no regrouping
            clusters = self.cluster(tokens, question, score, keep)
            chosen = torch.where(triggered[:, None], clusters[0], chosen)
            owner = torch.where(triggered[:, None], clusters[1], owner)
        record = {"kappa_topk": kappa, "triggered": triggered, "cluster": by_patch(tokens, chosen, owner)}
        return replace(tokens.gather(chosen), trace={**tokens.trace, **record})

    def triggers(self, kappa: Tensor) -> Tensor:
        """Step 1: kappa (B,) -> (B,) bool, each image for itself; a kappa that is not a number does not trigger."""
        if self.trigger == "kappa":
            return kappa > self.threshold
        return torch.full_like(kappa, self.trigger == "always", dtype=torch.bool)

    def cluster(
        self, tokens: VisualTokens, question: Question | None, score: Tensor, keep: int
    ) -> tuple[Tensor, Tensor]:
        """Steps 2 to 5: slots of the representatives (B, K) and each token's cluster (B, n) in 0..K-1."""
        profile = self.profile(tokens, question) if self.reads_question else None
        alike = similarity(tokens.hidden.float(), profile, self.beta)
        weight = importance(score, relevance(profile), self.a, self.gamma)
        chosen = greedy_representatives(alike, weight, keep)
        for _ in range(self.iterations):
            better = reselect(alike, weight, assign(alike, chosen), keep)
            if torch.equal(better, chosen):
                break
            chosen = better
        return chosen, assign(alike, chosen)

    def profile(self, tokens: VisualTokens, question: Question) -> Profile:
        """Step 2 from the source that `text` names."""
        if self.text == "clip":
            if question.clip is None or not tokens.has("clip"):
                raise InputError("text=clip needs CLIP's text vectors; use text=embeddings or text=none")
            words = question.clip
            return text_profile(tokens.read("clip"), words, words.new_ones(words.shape[:2], dtype=torch.bool))
        return text_profile(tokens.projected, question.embeddings, question.content & question.mask)


@dataclass(frozen=True)
class Profile:
    """What each of n tokens has to do with each of T words."""

    u: Tensor  # (B, n, T) centred cosines; 0 where no word
    words: Tensor  # (B, T) bool


def text_profile(tokens: Tensor, words: Tensor, real: Tensor) -> Profile:
    """Step 2 (*reconstruction*): cosines of tokens (B, n, D) with words (B, T, D), where real (B, T).

    Centred over the tokens of the image, word by word: what is common to all patches says nothing about any.
    """
    u = cosine(tokens, words)
    return Profile((u - u.mean(1, keepdim=True)).masked_fill(~real[:, None], 0.0), real)


def relevance(profile: Profile | None) -> Tensor | None:
    """Step 2: r (B, n), the best word of each token, standardised over the image; 0 in a row without words."""
    if profile is None or profile.u.shape[2] == 0:
        return None
    best = profile.u.masked_fill(~profile.words[:, None], -torch.inf).amax(2)
    return standardise(best.masked_fill(~profile.words.any(1, keepdim=True), 0.0))


def similarity(hidden: Tensor, profile: Profile | None, beta: float) -> Tensor:
    """Step 3 (*reconstruction*): S = (cos(x_i, x_j) + beta cos(u_i, u_j)) / (1 + beta), (B, n, n) from (B, n, D).

    A row (image) without words keeps cos(x_i, x_j).
    """
    seen = cosine(hidden, hidden)
    if profile is None:
        return seen
    share = beta * profile.words.any(1).to(seen.dtype)[:, None, None]  # (B, 1, 1)
    return (seen + share * cosine(profile.u, profile.u)) / (1 + share)


def importance(score: Tensor, relevant: Tensor | None, a: float, gamma: float) -> Tensor:
    """Step 3: w = s^a exp(gamma r), (B, n) from the score s and the relevance r, each (B, n)."""
    weight = score.pow(a)
    return weight if relevant is None else weight * (gamma * relevant).exp()


def greedy_representatives(alike: Tensor, weight: Tensor, k: int) -> Tensor:
    """Step 4: k slots (B, k) in the order chosen, each the one with the largest gain of the weighted coverage.

    The gain of i is sum_j w_j max(0, S_ij - cover_j), cover_j = the best S_lj of the chosen l so far, at first 0.
    Ties go to the lowest slot. alike (B, n, n), weight (B, n).
    """
    cover = torch.zeros_like(weight)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    chosen = []
    for _ in range(k):
        gain = ((alike - cover[:, None]).clamp_(min=0) @ weight[..., None])[..., 0]
        best = gain.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)  # (B, 1)
        chosen.append(best)
        taken = taken.scatter(1, best, True)
        cover = torch.maximum(cover, take(alike, best)[:, 0])
    return torch.cat(chosen, 1)


def assign(alike: Tensor, chosen: Tensor) -> Tensor:
    """Step 5: the most similar representative of each token, (B, n) in 0..K-1; a representative owns itself."""
    owner = take(alike, chosen).argmax(1)  # (B, K, n) -> (B, n)
    own = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    return owner.scatter(1, chosen, own)


def reselect(alike: Tensor, weight: Tensor, owner: Tensor, k: int) -> Tensor:
    """Step 5: in each cluster the slot with the largest w_i * mean_{j in cluster} S_ij, (B, K)."""
    member = torch.nn.functional.one_hot(owner, k).to(alike.dtype)  # (B, n, K)
    central = (alike @ member / member.sum(1, keepdim=True)).gather(2, owner[..., None])  # (B, n, 1)
    worth = (weight[..., None] * central).expand_as(member)
    return worth.masked_fill(member == 0, -torch.inf).argmax(1)


def self_owned(chosen: Tensor, n: int) -> Tensor:
    """(B, n): the place of each chosen slot in chosen (B, K), -1 elsewhere."""
    own = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    return own.new_full((len(chosen), n), -1).scatter(1, chosen, own)


def by_patch(tokens: VisualTokens, chosen: Tensor, owner: Tensor) -> Tensor:
    """(B, N): the patch kept for each surviving patch; -1 where it left earlier or nobody stands for it."""
    stands = tokens.index.gather(1, chosen).gather(1, owner.clamp(min=0))  # (B, n) patches
    nobody = tokens.index.new_full((len(owner), tokens.patches), -1)
    return nobody.scatter(1, tokens.index, stands.masked_fill(owner < 0, -1))
