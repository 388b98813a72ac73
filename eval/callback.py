"""The end of a sweep: its report and its exit status, whatever launcher ran the points and whatever stopped them."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from eval import failures
from eval.records import SAMPLES

log = logging.getLogger("dcp_prune")


@dataclass(frozen=True)
class Sweep:
    """A sweep that has begun: its folder, what it logs to, and when it began."""

    folder: Path
    tracking: DictConfig
    dry_run: bool
    since: str

    def finished(self) -> int:
        """How many finished points lie in the folder, of this sweep or of earlier ones."""
        found = self.folder.glob(f"*/*/*/*/{SAMPLES}")
        return sum(not file.parent.name.startswith(".") for file in found)

    def so_far(self) -> str:
        """The words behind "interrupted" or "terminated"."""
        count = self.finished()
        return f"; {count} points are finished, `python -m eval.report {self.folder}` shows them" if count else ""

    def conclude(self, lost: bool = False) -> int:
        """Writes and logs the report over all points in the folder.

        Args:
            lost: the launcher lost a process (killed, out of memory or time), so that some points are missing.

        Returns:
            The exit status: 0 done, 1 some point failed or was refused, 2 nothing is finished and some point was
            refused. A budget that its method cannot reach counts as done, also where the sweep has no other points.

        Raises:
            InputError: the report cannot be written.
        """
        found = failures.collect(self.folder, self.since)
        if found:
            lines = [f"  {failure.kind}: {failure.reason}" for failure in found]
            log.warning("\n".join(["Points without a result:", *lines]))
        kinds = {failure.kind for failure in found}
        failed = lost or failures.FAILED in kinds
        bad = failed or failures.REFUSED in kinds
        if self.dry_run:
            return 1 if bad else 0
        if not self.finished():
            return 1 if failed else 0 if kinds == {failures.OUT_OF_REACH} else 2
        from eval.report import write_report

        log.info("report: %s", write_report(self.folder))
        if self.tracking.name != "none":
            from eval.tracking import log_sweep

            log_sweep(self.folder, self.tracking)
        return 1 if bad else 0


begun: ContextVar[Sweep | None] = ContextVar("begun", default=None)  # Hydra hands its callbacks to nobody


class Report(Callback):
    """Notes the sweep that begins in `begun`, for `run.py` to conclude.

    Hydra's own `on_multirun_end` would be too late: it is not called where a job raised or was lost.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The composed configuration, before the points are told apart."""
        begun.set(Sweep(Path(config.hydra.sweep.dir), config.tracking, config.dry_run, failures.now()))
