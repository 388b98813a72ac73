"""Which row of visual tokens serves which question: an image's, a question's own, or one that is equal to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of visual tokens of a batch of images."""

    of_question: list[int]  # the row of each question
    image: list[int]  # the image of each row
    first: list[int]  # of each row the first of its image with equal tokens; mostly itself

    @property
    def distinct(self) -> list[int]:
        """The rows that differ, ascending."""
        return sorted(set(self.first))

    def prefixes(self, lengths: list[int], asked: list[int]) -> list[int]:
        """For each row the row whose prefix its questions follow: the first that is equal, or itself.

        A prefix's questions lie one after another, and what is shorter than the longest row is filled up. Equal rows
        are shared where that leaves less to compute: with long prefixes, or where most images share.

        Args:
            lengths: tokens of each row's prefix.
            asked: tokens of each question.
        """
        alone = list(range(len(self.image)))
        return min(self.first, alone, key=lambda choice: self._computed(choice, lengths, asked))

    def _computed(self, choice: list[int], lengths: list[int], asked: list[int]) -> int:
        """Tokens that a pass over the prefixes and one over the questions see, filling included."""
        following = dict.fromkeys(choice, 0)
        for row, tokens in zip(self.of_question, asked):
            following[choice[row]] += tokens
        return len(following) * (max(lengths[row] for row in following) + max(following.values()))


def rows_of(questions: list[list[str]], visual: Tensor | list[Tensor], by_question: bool) -> Rows:
    """The rows of `visual` (K, D_llm) each: one a question or one an image, for the questions of each image."""
    image_of = image_of_question(questions)
    if by_question:
        return Rows(list(range(len(image_of))), image_of, equal_rows(visual, image_of))
    every = list(range(len(questions)))
    return Rows(image_of, every, every)


def equal_rows(visual: Tensor | list[Tensor], image: list[int]) -> list[int]:
    """For each row of visual tokens (K, D_llm) the first row of its image that is equal to it.

    A method that reads the question often gives several questions of an image the same tokens.
    """
    marks = torch.stack([row.sum(dtype=torch.float64) for row in visual]).tolist()
    first: dict[tuple[int, float], int] = {}
    equal = []
    for row, place in enumerate(zip(image, marks)):
        other = first.setdefault(place, row)
        equal.append(other if other == row or torch.equal(visual[other], visual[row]) else row)
    return equal


def image_of_question(questions: list[list[str]]) -> list[int]:
    """The image of each question, for the questions of each image."""
    return [image for image, asked in enumerate(questions) for _ in asked]


def regrouped(flat: list[Any], like: list[list[str]]) -> list[list[Any]]:
    """One value a question -> a list an image, as `like` groups them."""
    values = iter(flat)
    return [[next(values) for _ in own] for own in like]
