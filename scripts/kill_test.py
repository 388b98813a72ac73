"""Kills a real sweep again and again, and shows that nothing is lost: `python scripts/kill_test.py --kills 20`.

The sweep runs once undisturbed. Then the same command runs in another folder and gets a SIGKILL at a random moment,
every other time right when it writes a record; it is started again, and killed again. After each kill every record in
sight must be whole and those that were there before must be the same bytes. At the end all files of the two folders
must be equal byte for byte; only times may differ (`timings.csv`, the figure and the fields that hold seconds).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ["-m", "budget=16,32,64", "method=cls_attention,acgr_tatcs,random", "limit=6", "batch_size=2", "pictures=1"]
TIMES = ("seconds", "resumed", "peak_memory_mb", "created", "commit")  # of metrics.json; you may commit while it runs
TIMED = ("timings.csv", "multirun.yaml", "figures/time_accuracy.png", "figures/time_accuracy.svg")


def start(words: list[str], out: Path) -> subprocess.Popen:
    """The sweep in a process group of its own, one thread, its output in OUT.log."""
    with out.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "run.py", *words, f"out={out}"]
        threads = {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | threads, start_new_session=True
        )


def digest(folder: Path) -> str:
    """Of all bytes of a record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def records(out: Path) -> dict[str, str]:
    """Digest of every record in sight; raises where one is not whole."""
    found = {}
    for folder in out.glob("*/*/*/*"):
        if folder.name.startswith(".") or not folder.name.isdigit():
            continue
        facts = json.loads((folder / "metrics.json").read_text())
        asked = sum(task["n"] for task in facts["tasks"].values())
        if facts["status"] != "finished" or pq.read_table(folder / "samples.parquet").num_rows != asked:
            raise AssertionError(f"{folder} is in sight and not whole")
        found[folder.relative_to(out).as_posix()] = digest(folder)
    return found


def kill_once(words: list[str], out: Path, wait: float, writing: bool, working: bool) -> bool:
    """Starts the sweep and kills it; False where it was done before.

    Args:
        wait: seconds from the moment that is waited for to the kill.
        writing: the moment is when a record is being written.
        working: the moment is when the first question is answered; with neither, the start.
    """
    process, begun = start(words, out), time.time()
    sign = ".*.new" if writing else ".*.partial/journal.jsonl"
    try:
        while process.poll() is None:
            if not (writing or working) or any(changed(path, begun) for path in out.glob(f"*/*/*/{sign}")):
                break
            time.sleep(0.0005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        if process.returncode:
            raise AssertionError(f"the sweep ended with status {process.returncode}, see {out}.log")
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            return True
        return False
    finally:
        process.wait()


def changed(path: Path, since: float) -> bool:
    """Whether a file or folder that may vanish at any time was written to since then."""
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False


def comparable(out: Path) -> dict[str, str]:
    """Every file but those that hold times, by its name -> what it holds; metrics.json without its times."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.json":
            facts = {key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES}
            found[name] = json.dumps(facts, sort_keys=True)
        elif name not in TIMED:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(words: list[str], kills: int, seed: int, folder: Path) -> dict[str, int]:
    """The whole test; how often the sweep was killed doing what."""
    dice, calm, out = random.Random(seed), folder / "calm", folder / "killed"
    if status := start(words, calm).wait():
        raise AssertionError(f"the undisturbed sweep ended with status {status}, see {calm}.log")
    ends = sorted((calm / name).stat().st_mtime for name in records(calm))
    point = (ends[-1] - ends[0]) / (len(ends) - 1)  # seconds
    told: dict[str, int] = {}
    before: dict[str, str] = {}
    while sum(told.values()) < kills:
        working = len(before) < len(ends)  # when all points are recorded, only the report is written
        writing = working and sum(told.values()) % 2 == 0
        wait = dice.uniform(0, 0.02 if writing else 2 * point if working else 20 * point)
        doing = "writing a record" if writing else "answering" if working else "starting or reporting"
        if kill_once(words, out, wait, writing, working):
            told[doing] = told.get(doing, 0) + 1
            print(f"kill {sum(told.values())}: {doing}, {len(records(out))} records stand", flush=True)
        now = records(out)
        if lost := [name for name, value in before.items() if now.get(name) != value]:
            raise AssertionError(f"lost or changed by a kill: {lost}")
        before = now
    if status := start(words, out).wait():
        raise AssertionError(f"the killed sweep ended with status {status}, see {out}.log")
    first, second = comparable(calm), comparable(out)
    if different := sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)):
        raise AssertionError(f"not equal after the kills: {different}")
    return told | {"equal files": len(first)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", help=f"of run.py, after --; default: {' '.join(SWEEP)}")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kill_test-"))  # stays where the test fails
    told = run(given.words or SWEEP, given.kills, given.seed, folder)
    shutil.rmtree(folder)
    print("all equal:", ", ".join(f"{count} {what}" for what, count in told.items()))


if __name__ == "__main__":
    main()
