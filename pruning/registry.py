"""Methods by name. The registry is the folder `configs/method/`; there is no second list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError, unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pruning.base import Pruner

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "method"
KINDS: dict[type, tuple[str, Any]] = {  # of a hyper-parameter's default: in words, and the types that fit
    bool: ("true or false", bool),
    int: ("an integer", int),
    float: ("a number", int | float),
    list: ("a list", list | tuple),
    str: ("a word", str),
}


def names(folder: Path = CONFIGS) -> list[str]:
    """All method names, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def summary(name: str, folder: Path = CONFIGS) -> str:
    """The first comment line of the method's YAML: what it does in a newcomer's words."""
    first = (folder / f"{name}.yaml").read_text().splitlines()[0]
    return first.lstrip("# ").strip()


def read(name: str, folder: Path = CONFIGS) -> DictConfig:
    """A method's YAML, nothing resolved.

    Raises:
        InputError: unknown method (with the nearest names).
    """
    from omegaconf import OmegaConf

    if name not in names(folder):
        raise unknown("method", name, names(folder))
    return OmegaConf.load(folder / f"{name}.yaml")  # type: ignore[return-value]


def defaults(name: str, folder: Path = CONFIGS) -> dict[str, Any]:
    """Hyper-parameters and defaults of a method's YAML, without target and budget."""
    from omegaconf import OmegaConf

    config = read(name, folder)
    config["budget"] = 1
    values = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in values.items() if key not in ("_target_", "budget")}


def checked(name: str, given: Mapping[str, Any], folder: Path = CONFIGS) -> dict[str, Any]:
    """All hyper-parameters of a method: those given, each of the kind that its YAML has, and the YAML's others.

    Raises:
        InputError: an unknown hyper-parameter, a value of another kind, or a number that is not finite.
    """
    values = defaults(name, folder)
    for key, value in given.items():
        if key not in values:
            raise InputError(f"method '{name}' has no hyper-parameter '{key}'; it has {', '.join(values) or 'none'}")
        default, value = values[key], plain(value)
        words, types = KINDS.get(type(default), ("anything", object))
        fits = isinstance(value, types) and not (isinstance(value, bool) and type(default) in (int, float))
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{key} of {name} must be {words} (default {default}), got {value!r}")
        values[key] = value
    return values


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def load(name: str, budget: int, folder: Path = CONFIGS, **overrides: Any) -> Pruner:
    """A method with its YAML's defaults: `load("acgr_tatcs", budget=16, threshold=0.5)`.

    Raises:
        InputError: unknown method (with the nearest names), unknown or badly valued hyper-parameter.
    """
    module, _, cls = read(name, folder)["_target_"].rpartition(".")
    return getattr(import_module(module), cls)(budget, **checked(name, overrides, folder))
