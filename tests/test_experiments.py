"""Every file of configs/experiment, run by the command that its first line names, shrunk."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from eval.settings import ROOT, Config, embedded_names
from tests.sandbox import call, encoded, picture, write_data

FILES = sorted((ROOT / "configs" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, as test and as development split."""
    folder = write_data(tmp_path_factory.mktemp("data"), [encoded(picture(i)) for i in range(2)])
    shutil.copytree(folder / "test", folder / "dev")
    return folder


def command(file: Path) -> list[str]:
    """The words after `python run.py` in the file's first comment; the second says what to expect."""
    directive, first, second = file.read_text().splitlines()[:3]
    assert directive == "# @package _global_" and first.startswith("# python run.py ") and second.startswith("# ")
    words = shlex.split(first.removeprefix("# python run.py "))
    assert f"experiment={file.stem}" in words
    return words


def composed(words: list[str]) -> DictConfig:
    ConfigStore.instance().store("schema", Config)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("config", [word for word in words if word != "-m"], return_hydra_config=True)


def few(config: DictConfig) -> list[str]:
    """Of everything that the experiment sweeps the first choice, of the last one both ends."""
    given = [f"{name}={values}" for name, values in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader()).parse_overrides(given)
    choices = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [o.value()] for o in overrides]
    ends = [values[:1] for values in choices[:-1]] + [[values[0], values[-1]] for values in choices[-1:]]
    return [f"{o.key_or_group}={','.join(map(str, values))}" for o, values in zip(overrides, ends)]


def config_loader():
    """Hydra's, which knows the files behind `glob(*)`."""
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment(file: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(file)
    config = composed(words)
    swept = few(config)
    shrunk = [*words, *swept, f"out={tmp_path}", "pictures=0"]
    if (ROOT / config.model.path).exists() and set(config.tasks.names) <= set(embedded_names()):
        assert call(*shrunk, f"tasks.data_dir={data}", "limit=2") == 0
        facts = [json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json")]
        assert {fact["status"] for fact in facts} == {"finished"} and len(facts) >= 2
    else:  # needs weights or benchmarks from elsewhere
        assert call(*shrunk, "dry_run=true") == 0
        shown = capsys.readouterr().out
        assert f"{3 if swept else 2} points into {tmp_path}" in shown  # the unpruned model's is one
        assert "missing, or not possible:" in shown and config.model.path in shown
