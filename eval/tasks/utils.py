"""Metrics of the embedded tasks; lmms-eval finds them through the task YAML beside this file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def normal(text: str) -> str:
    """What is compared: without case, surrounding blanks and a final period; digits without blanks between."""
    text = " ".join(str(text).lower().split()).rstrip(".").strip()
    return re.sub(r"(?<=\d) (?=\d)", "", text)


def right(doc: Mapping[str, Any], results: Sequence[str]) -> float:
    """1 where the model's answer is the expected one, else 0."""
    return float(normal(results[0]) == normal(doc["answer"]))


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question as it is; the model adds its own prompt."""
    return doc["question"]


def score_exact(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Exact match."""
    return {"exact_match": right(doc, results)}


def score_pairs(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and what accuracy-plus needs."""
    value = right(doc, results)
    return {"accuracy": value, "accuracy_plus": {"pair": doc["pair_id"], "right": value}}


def score_presence(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and what F1 (yes is positive) needs."""
    said = normal(results[0])
    return {"accuracy": right(doc, results), "f1": {"said": said, "expected": normal(doc["answer"])}}


def accuracy_plus(items: Sequence[Mapping[str, Any]]) -> float:
    """Share of the pairs with every question right."""
    pairs: dict[Any, list[float]] = defaultdict(list)
    for item in items:
        pairs[item["pair"]].append(item["right"])
    return sum(min(values) for values in pairs.values()) / len(pairs)


def f1(items: Sequence[Mapping[str, Any]]) -> float:
    """F1 of "yes"; 0 where nothing was or should be yes."""
    hits = sum(item["said"] == item["expected"] == "yes" for item in items)
    said = sum(item["said"] == "yes" for item in items)
    there = sum(item["expected"] == "yes" for item in items)
    return 2 * hits / (said + there) if said + there else 0.0
