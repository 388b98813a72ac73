"""Kills a real sweep again and again, and shows that nothing is lost: `python scripts/kill_test.py --kills 20`.

The sweep runs once undisturbed. Then the same command runs in another folder and gets a SIGKILL at a random moment,
every other time right when it writes a record; it is started again, and killed again. After each kill every record in
sight must be whole and those that were there before must be the same bytes. At the end all files of the two folders
must be equal byte for byte; only times may differ (`timings.csv`, the figure and the fields that hold seconds).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ["-m", "budget=16,32,64", "method=cls_attention,acgr_tatcs,random", "limit=6", "batch_size=2", "pictures=1"]
TIMES = ("seconds", "peak_memory_mb", "created")  # of metrics.json
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


def kill_once(words: list[str], out: Path, dice: random.Random, writing: bool, calm: float) -> str | None:
    """Starts the sweep and kills it; what it was doing, or None where it was done before."""
    process = start(words, out)
    begun, moment = time.monotonic(), dice.uniform(0.3, 1.0) * calm
    seen = None
    try:
        while process.poll() is None:
            if writing and any(out.glob("*/*/*/.*.new")):
                seen = "writing a record"
                time.sleep(dice.uniform(0, 0.02))
                break
            if not writing and time.monotonic() - begun > moment:
                seen = "at a random moment"
                break
            time.sleep(0.0005)
        if seen is None:
            if process.returncode:
                raise AssertionError(f"the sweep ended with status {process.returncode}, see {out}.log")
            return None
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    return seen


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
    begun = time.monotonic()
    if status := start(words, calm).wait():
        raise AssertionError(f"the undisturbed sweep ended with status {status}, see {calm}.log")
    took = time.monotonic() - begun
    told: dict[str, int] = {}
    before: dict[str, str] = {}
    while sum(told.values()) < kills:
        done = len(before) == len(records(calm))  # then nothing is written but the report
        number = sum(told.values())
        doing = kill_once(words, out, dice, writing=not done and number % 2 == 0, calm=took / (2 if done else 1))
        if doing is None:
            took *= 0.8
        else:
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
    with tempfile.TemporaryDirectory() as folder:
        told = run(given.words or SWEEP, given.kills, given.seed, Path(folder))
    print("all equal:", ", ".join(f"{count} {what}" for what, count in told.items()))


if __name__ == "__main__":
    main()
