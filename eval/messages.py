"""Errors put in words: what was wrong with the command line, or any exception, in one line."""

from __future__ import annotations

import re
from dataclasses import fields

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from eval.settings import Config, did_you_mean, nearest

FLAGS = {
    *("-m", "--multirun", "-r", "--run", "-c", "--cfg", "-p", "--package", "--resolve", "-i", "--info"),
    *("-sc", "--shell-completion", "--hydra-help", "--version", "-cd", "--config-dir"),
}


def unknown_flag(words: list[str]) -> str | None:
    """A complaint about the first word that starts with a dash and is none of Hydra's options."""
    for word in words:
        name = word.split("=")[0]
        if not word.startswith("-") or name in FLAGS:
            continue
        bare = name.lstrip("-").replace("-", "_")
        if bare in option_names():
            return f"unknown option {name}; options have no dashes here: {bare}=VALUE"
        return f"unknown option {name}{did_you_mean(bare, option_names())}"
    return None


def option_names() -> list[str]:
    """Everything that can stand before the equals sign."""
    return [f.name for f in fields(Config)] + ["experiment", "launcher"]


def one_line(error: BaseException) -> str:
    """A Hydra or OmegaConf error as one line: the value, what was expected, the nearest names."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            return f"unknown {group} '{name}'{did_you_mean(name, cause.options)}"
    text = " ".join(str(part) for part in chain if isinstance(part, HydraException | OmegaConfBaseException))
    override = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Key '([^']+)' (?:is not in struct|not in '(\w+)')", text)
    if override and missing:
        name = override[1]
        return f"unknown option '{name}'{nearest_option(name)}"
    value = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text)
    value = value or re.search(r"Value '(.*?)' is not a valid (\w+)", text)
    place = re.search(r"full_key: (\S+)", text)
    if value and place:
        kind = {"Integer": "an integer", "Float": "a number", "bool": "true or false"}.get(value[2], value[2])
        return f"{place[1]} must be {kind}, got {value[1]!r}"
    if place and "is not a ListConfig" in text:
        return f"{place[1]} must be a list: {place[1]}=[one,two]"
    first = " ".join(line.strip() for line in str(chain[-1] or error).strip().splitlines() if line.strip())
    return re.sub(r"\s*See https?://\S+.*", "", first) or type(error).__name__


def brief(error: BaseException) -> str:
    """Any error as one line."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return one_line(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def nearest_option(name: str) -> str:
    """A hint at the option that was meant; hyper-parameters are looked up in the method's own list by Hydra."""
    top, dot, rest = name.partition(".")
    near = nearest(top, option_names(), 1)
    if dot and near == [top]:
        return f"; `python run.py --cfg job -p {top}` lists what {top} has" if rest else ""
    return f"; did you mean {near[0]}{dot}{rest}?" if near else "; `python run.py --help` lists the options"
