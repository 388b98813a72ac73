"""Visual-token pruning, free of any model: tokens, the base of all methods, the shift metric, the methods."""

from pruning.base import Pruner
from pruning.errors import InputError
from pruning.registry import load, names, summary
from pruning.tokens import Question, VisualTokens

__all__ = ["InputError", "Pruner", "Question", "VisualTokens", "load", "names", "summary"]
