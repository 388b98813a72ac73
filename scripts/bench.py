"""Timings of the parts: `python scripts/bench.py selection` (see `scripts/benches/`; `--help` after a name)."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "scripts" / "benches").glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"usage: python scripts/bench.py {{{','.join(known)}}} [options]")
    sys.path.insert(0, str(ROOT))
    import_module(f"scripts.benches.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
