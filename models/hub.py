"""Whether a model or a data set can be had, found out in seconds: the hub client itself retries for half a minute."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pruning.errors import InputError

TIMEOUT = 2.0  # seconds


def is_name(name: str) -> bool:
    """Whether `name`, which is no folder, can be a name on the hub (org/name)."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def require(name: str) -> None:
    """Checks that the hub's model `name` (org/name) lies in the cache, or that the hub answers.

    Raises:
        InputError: neither; says where it was looked for and what to set.
    """
    line = missing_model(name)
    if line is not None:
        raise InputError(line)


def missing_model(name: str, setting: str = "model.path", ask: Callable[[], str | None] | None = None) -> str | None:
    """Why the hub's model `name` (org/name) cannot be had; None where it lies in the cache or the hub answers.

    Args:
        setting: the option that would name a folder instead.
        ask: `unreachable`, or one that remembers its answer.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not is_name(name):
        return f"folder '{name}' not found; set {setting} to a folder or to a hub name (org/name)"
    why = None if isinstance(try_to_load_from_cache(name, "config.json"), str) else (ask or unreachable)()
    return why and (
        f"model '{name}' is not a folder, not in the cache ({constants.HF_HUB_CACHE}), and {why}; "
        f"set {setting}=FOLDER, or run `hf download {name}` where there is a network"
    )


def missing_data(
    task: str, repo: str, configs: list[str | None], include: str | None, ask: Callable[[], str | None] | None = None
) -> str | None:
    """Why the data of an official task cannot be had; None where `datasets` has them or the hub answers.

    Args:
        include: a pattern of the files that are needed; None: all of them.
        ask: `unreachable`, or one that remembers its answer.
    """
    why = None if all(in_data_cache(repo, config) for config in configs) else (ask or unreachable)()
    part = f" --include '{include}'" if include else ""
    return why and (
        f"the data of task '{task}' ({repo}) are not in the cache ({data_cache()}), and {why}; run "
        f"`hf download --repo-type dataset {repo}{part} --local-dir FOLDER/{task}` where there is a network, "
        "and set tasks.data_dir=FOLDER"
    )


def data_cache() -> Path:
    """The folder in which `datasets` keeps what it has prepared; the package itself takes a second to import."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")


def in_data_cache(repo: str, config: str | None) -> bool:
    """Whether `datasets` has prepared a configuration of `repo` (it writes names in snake case)."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "")

    wanted = plain(repo.replace("/", "___"))
    folders = [folder for folder in data_cache().glob("*___*") if plain(folder.name) == wanted]
    return any((folder / (config or "default")).is_dir() for folder in folders)


def unreachable() -> str | None:
    """Why the hub cannot be asked; None where it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if answers(constants.ENDPOINT) else f"{constants.ENDPOINT} does not answer"


def answers(url: str) -> bool:
    """Whether a server answers at `url`, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
