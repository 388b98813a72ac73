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
        """The rows that the language model must read, ascending."""
        return sorted(set(self.first))

    @property
    def owner(self) -> list[int]:
        """For each question the place of its row among the `distinct` ones."""
        place = {row: at for at, row in enumerate(self.distinct)}
        return [place[self.first[row]] for row in self.of_question]


def rows_of(questions: list[list[str]], visual: Tensor | list[Tensor], by_question: bool) -> Rows:
    """The rows of `visual` (K, D_llm) each: one a question or one an image, for the questions of each image."""
    image_of = image_of_question(questions)
    if by_question:
        return Rows(list(range(len(image_of))), image_of, equal_rows(visual, image_of))
    every = list(range(len(questions)))
    return Rows(image_of, every, every)


def equal_rows(visual: Tensor | list[Tensor], image: list[int]) -> list[int]:
    """For each row of visual tokens (K, D_llm) the first row of its image that is equal to it.

    A method that reads the question often gives several questions of an image the same tokens; they share a prefix.
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
