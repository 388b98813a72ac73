"""A record's folder on disk: whole or not at all, skipped when it is there, refused when it is another's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from eval.settings import Plan, public
from pruning.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

METRICS, SAMPLES, CONFIG, LOGITS = "metrics.json", "samples.parquet", "config.yaml", "first_logits.npy"
GROUP = 2000  # rows of samples.parquet that are written at a time
TRIES = 1000  # to create a folder that others remove; more of them mean that it cannot be created


class Record:
    """The folder of one point.

    While the point runs, `.<budget>.partial/` beside it holds the lock and the journal. The finished record is
    written to `.<budget>.new/` and renamed; one that it replaces is `.<budget>.old/` for that moment.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.folder = plan, plan.folder
        self.partial = self.folder.parent / f".{self.folder.name}.partial"
        self.fresh, self.old = (self.folder.parent / f".{self.folder.name}.{name}" for name in ("new", "old"))
        self.journal = self.partial / "journal.jsonl"

    @property
    def again(self) -> str:
        """The options that run the point again; with a pruning method `force` leaves the unpruned model alone."""
        return "method=vanilla force=true" if self.plan.method == "vanilla" else "force=true"

    def read(self) -> dict[str, Any] | None:
        """metrics.json, or None where there is no record.

        Raises:
            InputError: the folder is there and is not a record.
        """
        if not self.folder.exists():
            return None
        try:
            return json.loads((self.folder / METRICS).read_text())
        except (OSError, ValueError) as error:
            raise self._foreign() from error

    def finished(self) -> bool:
        """Whether the very same point is recorded as finished.

        Raises:
            InputError: the folder holds the finished record of another configuration.
        """
        metrics = self.read()
        with damage(self.folder):
            if metrics is None or metrics["status"] != "finished":
                return False
        with damage(self.folder):
            other = yaml.safe_load((self.folder / CONFIG).read_text())["identity"]
        different = differences(other, self.plan.identity)
        if different:
            raise InputError(
                f"'{self.folder}' holds a run of another config ({'; '.join(different)}); "
                f"choose another out= or repeat it with {self.again}"
            )
        return True

    @contextmanager
    def lock(self, wait: Callable[[str], None]) -> Iterator[None]:
        """One process a point: others wait until it is done. What a killed process left is put right first.

        Raises:
            InputError: the folder cannot be written, or its file system has no locks.
        """
        with self._locked(wait):
            self._tidy()
            try:
                yield
            finally:
                if not self.journal.is_file():
                    shutil.rmtree(self.partial, ignore_errors=True)
                    remove_empty(self.folder.parent, self.plan.out)

    def _locked(self, wait: Callable[[str], None]) -> TextIO:
        """The open lock file; closing it gives the lock back."""
        file = self.partial / "lock"
        failures = 0
        while True:
            with disk_errors(self.folder):
                try:
                    self.partial.mkdir(parents=True, exist_ok=True)
                    handle = file.open("w")
                except (FileNotFoundError, FileExistsError) as error:  # another process was done and removed it
                    failures += 1
                    if self.partial.is_file():
                        raise
                    if failures > TRIES:
                        raise InputError(
                            f"cannot create '{self.partial}': {error.strerror}; choose another out="
                        ) from error
                    continue
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    wait(f"another process runs {self.folder}; waiting for it")
                    fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(file.stat(), os.fstat(handle.fileno())):
                    return handle
            handle.close()  # the file that we waited for is gone: whoever comes now would lock another one

    def _tidy(self) -> None:
        """A record that was being replaced comes back where the new one was not in its place yet."""
        if self.old.exists() and not self.folder.exists():
            self.old.rename(self.folder)
        for half in (self.old, self.fresh):
            shutil.rmtree(half, ignore_errors=True)

    def _refuse_foreign(self) -> None:
        """Raises InputError where the folder is there, holds something and is no record: it would be replaced."""
        known = (METRICS, CONFIG, SAMPLES)
        if self.folder.is_dir() and any(self.folder.iterdir()) and not any((self.folder / n).exists() for n in known):
            raise self._foreign()

    def _foreign(self) -> InputError:
        return InputError(f"'{self.folder}' is not a record of a run; move it away or choose another out=")

    def write(self, metrics: Mapping[str, Any], fill: Callable[[Path], None] = lambda folder: None) -> None:
        """Replaces the record; `fill` writes everything but the metrics and the configuration.

        Raises:
            InputError: the disk is full or not writable; nothing is left of the new record.
        """
        fresh, old = self.fresh, self.old
        self._refuse_foreign()
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            with disk_errors(self.folder):
                fresh.mkdir(parents=True)
                fill(fresh)
                (fresh / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
                config = {"config": public(self.plan), "identity": self.plan.identity}
                (fresh / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
                for path in fresh.rglob("*"):
                    if path.is_file():
                        sync(path)
                shutil.rmtree(old, ignore_errors=True)
                if self.folder.exists():
                    self.folder.rename(old)
                fresh.rename(self.folder)
                sync(self.folder.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def forget_journal(self) -> None:
        """The point is recorded: the journal has done its work."""
        self.journal.unlink(missing_ok=True)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """`name=old, not new` for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else str(k))]
    return [] if old == new else [f"{name}={old}, not {new}"]


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Turns what reading a damaged record raises into one clear line."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"record '{folder}' is damaged ({reason}); remove it, the same command runs it again"
        ) from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"disk full while writing '{folder}'; free some space and run the same command"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise InputError(f"cannot write '{folder}': {error.strerror}; choose another out=") from error
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise InputError(f"no file locks on the disk of '{folder}'; choose another out=") from error
        raise


def write_samples(path: Path, samples: pd.DataFrame) -> None:
    """samples.parquet, some thousand rows at a time: a table in Arrow's memory is several times the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.Schema.from_pandas(samples, preserve_index=False)
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, max(1, len(samples)), GROUP):
            rows = samples.iloc[start : start + GROUP]
            file.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False))
    pa.default_memory_pool().release_unused()


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_empty(folder: Path, top: Path) -> None:
    """Removes `folder` and its parents up to `top`, as long as they are empty."""
    while folder != folder.parent and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
