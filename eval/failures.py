"""Which points of a sweep in progress have no result: a small file each, so that all its processes can tell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

FAILED, REFUSED, OUT_OF_REACH = "failed", "refused", "out of reach"


@dataclass(frozen=True)
class Failure:
    """A point without a result.

    `kind`: `failed` (the run broke), `refused` (bad input) or `out of reach` (the method cannot meet the budget).
    """

    kind: str
    reason: str
    created: str  # ISO 8601, UTC, to the second


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def note(out: Path, number: int, kind: str, reason: str) -> None:
    """Notes what happened to job `number`; where `out` cannot be written, the line on stderr has to do."""
    folder = out / ".failures"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps({"kind": kind, "reason": reason, "created": now()})
        (folder / f"{number}-{os.getpid()}.json").write_text(told)


def collect(out: Path, since: str) -> list[Failure]:
    """The notes since a moment; all notes are thrown away."""
    found = []
    for file in sorted((out / ".failures").glob("*.json")):
        try:
            found.append(Failure(**json.loads(file.read_text())))
        except ValueError:  # the process died while it wrote
            found.append(Failure(FAILED, f"unreadable note {file.name}", now()))
    shutil.rmtree(out / ".failures", ignore_errors=True)
    return [failure for failure in found if failure.created >= since]
