"""Our model as lmms-eval makes it from the words of its command line (`eval.lmms_cli`)."""

from __future__ import annotations

from typing import Any

from eval import point
from eval.journal import Journal
from eval.lmms_model import PrunedLlava
from eval.settings import ROOT, Config, Plan, check


class Memory(Journal):
    """A journal that is not kept: lmms-eval's own command line has no record of ours to go on with."""

    def __init__(self) -> None:
        self.batches = {}

    def add(self, batch: str, rows: list[dict[str, Any]]) -> None:
        """Keeps a finished batch while the process lives."""
        self.batches[batch] = rows


class DcpPrune(PrunedLlava):
    """The model under its name in lmms-eval; arguments are the options of run.py."""

    def __init__(self, batch_size: Any = None, device: str | None = None, **options: Any) -> None:
        options.pop("max_batch_size", None)
        given = {"model.path" if name == "path" else name: value for name, value in options.items()}
        words = [f"{name}={'null' if value is None else value}" for name, value in given.items()]
        plan = composed([*words, f"device={(device or 'auto').split(':')[0]}"])
        llava, pruner = point.load_model(plan), point.make_pruner(plan)
        llava.seen.clear()  # images of another command's data may have the same names
        pruner.keeps(llava.visual_tokens)
        size = int(batch_size) if str(batch_size).isdigit() else point.auto_batch(llava, 1)
        name = f"{plan.label} {plan.budget}"
        super().__init__(llava, pruner, size, Memory(), name, shifts=False)  # lmms-eval has no place for them


def composed(words: list[str]) -> Plan:
    """The checked plan of run.py's options."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    ConfigStore.instance().store("schema", Config)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("config", words, return_hydra_config=True)
    method = config.hydra.runtime.choices["method"]
    return check(config, method)
