"""Hydra's callback: after a sweep, the report."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Report(Callback):
    """Writes the report of a sweep from its files, whatever launcher ran the points; exit status 1 if one failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remembers when the sweep began."""
        self.start = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The report over everything in `out`."""
        if config.dry_run:
            return
        folder = Path(config.hydra.sweep.dir)
        records = list(folder.glob("*/*/*/*/metrics.json"))
        if not records:
            raise SystemExit(2)  # every point was refused, and each said why
        from eval.report import write_report

        write_report(folder)
        if config.tracking.name != "none":
            from eval.tracking import log_sweep

            log_sweep(folder, config.tracking)
        found = [json.loads(path.read_text()) for path in records]
        if any(m["status"] == "failed" and m["created"] >= self.start for m in found):
            raise SystemExit(1)
