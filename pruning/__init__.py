"""Visual-token pruning, free of any model: tokens, the base of all methods, the shift metric, the methods."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.base import Pruner
    from pruning.errors import InputError
    from pruning.registry import load, names, summary
    from pruning.tokens import Question, VisualTokens

__all__ = ["InputError", "Pruner", "Question", "VisualTokens", "load", "names", "summary"]
_HOMES = {"InputError": "errors", "Pruner": "base", "Question": "tokens", "VisualTokens": "tokens"}


def __getattr__(name: str) -> Any:
    """Names are fetched when first used: `run.py --help` reads the registry without importing torch."""
    if name not in __all__:
        raise AttributeError(f"module 'pruning' has no attribute '{name}'")
    return getattr(import_module(f"pruning.{_HOMES.get(name, 'registry')}"), name)
