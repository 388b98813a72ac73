"""The one entry point: compose, check, load, prune, evaluate, record. `python run.py --help` explains the choices."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruning.errors import InputError


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Slurm sends before it kills; ends a run as Ctrl-C does."""


def point(config: object, dry: list) -> float:
    """One point of a sweep, or the only one: returns the mean score in percent, NaN where a sweep's point failed.

    A dry run only adds the checked plan to `dry`.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from eval.settings import check

    show_messages()
    hydra = HydraConfig.get()
    plan = None
    try:
        plan = check(config, hydra.runtime.choices["method"])  # type: ignore[arg-type]
        if config.dry_run:  # type: ignore[attr-defined]
            dry.append(plan)
            return float("nan")
        return run(plan)
    except Exception as error:
        if hydra.mode != RunMode.MULTIRUN:
            raise
        keep_failure(Path(hydra.sweep.dir).expanduser(), hydra.job.num, plan, error)
        return float("nan")


def keep_failure(out: Path, number: int, plan: object | None, error: Exception) -> None:
    """Says why a sweep's point has no result, notes it for the exit status and records it for the report."""
    from eval import failures
    from eval.messages import brief
    from eval.point import fail
    from pruning.errors import OutOfReach

    refused = failures.OUT_OF_REACH if isinstance(error, OutOfReach) else failures.REFUSED
    kind = refused if isinstance(error, InputError) else failures.FAILED
    where = "" if plan is None else f"{plan.label} at {plan.budget} tokens: "  # type: ignore[attr-defined]
    complain(where + brief(error))
    failures.note(out, number, kind, where + brief(error))
    if plan is not None and kind != failures.REFUSED:
        fail(plan, brief(error), kind, error)  # type: ignore[arg-type]


def run(plan: object) -> float:
    """Runs, prints the table, logs."""
    from eval.needs import ready
    from models.guard import guard_torchvision

    ready(plan)  # type: ignore[arg-type]
    guard_torchvision()
    from eval import point, table

    result = point.run(plan)  # type: ignore[arg-type]
    print(table.render(result), flush=True)
    if result.plan.tracking.get("name") != "none":
        from eval.tracking import log_point

        log_point(result)
    return result.metrics["average"]


def show_messages() -> None:
    """Progress messages of the packages go to stderr."""
    log = logging.getLogger("dcp_prune")
    log.handlers = [logging.StreamHandler(sys.stderr)]  # anew: the stream may have been replaced since the last call
    log.setLevel(logging.INFO)
    log.propagate = False


def complain(line: str) -> None:
    """One line on stderr."""
    print(f"error: {line}", file=sys.stderr, flush=True)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block; only a process's main thread can ask for that."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 some point of a sweep failed or was refused, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        from eval.help import text

        print(text(), end="")
        return 0
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from eval import messages
    from eval.callback import begun
    from eval.dry_run import settled

    begun.set(None)
    try:
        with terminable(), settled(words) as words:
            lost = launch(words)
            sweep = begun.get()
            show_messages()
            return 0 if sweep is None else sweep.conclude(lost)
    except InputError as error:
        complain(str(error))
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        complain(messages.one_line(error))
        return 2
    except KeyboardInterrupt as stopped:
        sweep = begun.get()
        how, status = ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        complain(f"{how}; the same command goes on where it was" + ("" if sweep is None else sweep.so_far()))
        return status


def launch(words: list[str]) -> bool:
    """Runs the points; whether the launcher of a sweep lost one of its processes (killed, out of memory or time)."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from eval import messages
    from eval.callback import begun
    from eval.settings import ROOT, Config

    wrong = messages.unknown_flag(words)
    if wrong:
        raise InputError(wrong)
    ConfigStore.instance().store("schema", Config)
    GlobalHydra.instance().clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and leave as one line
    words = sorted(words, key=lambda word: word not in ("-m", "--multirun"))  # Hydra takes no flag between options
    before, sys.argv = sys.argv, ["run.py", *words]
    kept: list[Exception] = []
    dry: list[object] = []

    def job(config: object) -> float:
        try:
            return point(config, dry)
        except Exception as error:  # kept from Hydra, which would print its own lines
            kept.append(error)
            return float("nan")

    try:
        hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException, InputError):
        raise
    except ValueError as error:  # Hydra's, of words that it cannot compose: `method=3`
        raise InputError(f"{messages.brief(error)}; `python run.py --help` lists the choices") from error
    except Exception as error:
        if begun.get() is None:
            raise
        complain(f"a process of the sweep was lost ({messages.brief(error)}); the same command runs what is missing")
        return True
    finally:
        sys.argv = before
    if kept:
        raise kept[0]
    if dry:
        from eval.dry_run import render

        print(render(dry), flush=True)  # type: ignore[arg-type]
    return False


if __name__ == "__main__":
    sys.exit(main())
