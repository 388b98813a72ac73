"""The exception that means "the caller gave something that cannot work", and its commonest reasons."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, said in one line: the value, what was expected, what to do.

    `run.py` prints the line and exits with status 2; from Python it is an ordinary ValueError.
    """


class OutOfReach(InputError):
    """A budget that a method cannot meet on this model: a hole in a grid of budgets, not a mistake in it."""


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`, with the nearest ones."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(f"unknown {kind} '{name}'; {hint}known: {', '.join(known)}")
