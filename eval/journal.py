"""What a run has answered so far, kept on disk batch by batch, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.logits import LogitsFile, numbers_in


class Journal:
    """Lines of JSON: a header that names the configuration, then one line a batch, each flushed to the disk.

    A journal of another configuration, and an incomplete last line, are dropped. Rows' `logits` go into a file of
    their own beside it, and the row keeps their place there; without that file the journal is dropped too.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.batches: dict[str, list[dict[str, Any]]] = {}  # batch name -> its rows
        good, logits = self._read(fingerprint), path.with_suffix(".logits")
        places = [row["logits"] for rows in self.batches.values() for row in rows if "logits" in row]
        end = max((start + length for start, length in places), default=0)
        if end > numbers_in(logits):  # the journal was moved without them
            self.batches, good, end = {}, 0, 0
        self._kept = bool(self.batches)
        path.parent.mkdir(parents=True, exist_ok=True)
        if good:
            os.truncate(path, good)
        self._file = path.open("ab" if good else "wb")
        if not good:
            self._line({"fingerprint": fingerprint})
        self.logits = LogitsFile(logits, end)

    @property
    def answers(self) -> int:
        """How many answers wait in it to be taken over."""
        return sum(map(len, self.batches.values()))

    def _read(self, fingerprint: str) -> int:
        """Loads the batches; returns how many bytes are whole."""
        if not self.path.is_file():
            return 0
        whole = 0
        for number, raw in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            header = {"fingerprint": fingerprint}
            if not isinstance(line, dict) or (line != header if number == 0 else set(line) != {"batch", "rows"}):
                break
            if number:
                self.batches[line["batch"]] = line["rows"]
            whole += len(raw)
        return whole

    def add(self, batch: str, rows: list[dict[str, Any]]) -> None:
        """Keeps a finished batch; a row's `logits`, an array (V,), give way to their place on the disk."""
        with_logits = [row for row in rows if "logits" in row]
        if with_logits:
            for row, place in zip(with_logits, self.logits.append(row["logits"] for row in with_logits)):
                row["logits"] = place
        self.batches[batch] = rows
        self._kept = True
        self._line({"batch": batch, "rows": rows})

    def _line(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, which can be opened again; without a batch there is nothing to keep."""
        self._file.close()
        self.logits.close()
        if not self._kept:
            self.path.unlink(missing_ok=True)
