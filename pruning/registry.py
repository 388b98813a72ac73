"""Methods by name. The registry is the folder `configs/method/`; there is no second list."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError, unknown

if TYPE_CHECKING:
    from pruning.base import Pruner

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "method"


def names(folder: Path = CONFIGS) -> list[str]:
    """All method names, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def summary(name: str, folder: Path = CONFIGS) -> str:
    """The first comment line of the method's YAML: what it does in a newcomer's words."""
    first = (folder / f"{name}.yaml").read_text().splitlines()[0]
    return first.lstrip("# ").strip()


def load(name: str, budget: int, folder: Path = CONFIGS, **overrides: Any) -> Pruner:
    """A method with its YAML's defaults: `load("acgr_tatcs", budget=16, threshold=0.5)`.

    Raises:
        InputError: unknown method (with the nearest names), unknown or badly valued hyper-parameter.
    """
    from omegaconf import OmegaConf

    if name not in names(folder):
        raise unknown("method", name, names(folder))
    config = OmegaConf.load(folder / f"{name}.yaml")
    config["budget"] = budget
    values = OmegaConf.to_container(config, resolve=True)
    module, _, cls = values.pop("_target_").rpartition(".")
    for key in overrides:
        if key not in values:
            raise InputError(f"method '{name}' has no hyper-parameter '{key}'; it has {', '.join(values)}")
    return getattr(import_module(module), cls)(**{**values, **overrides})
