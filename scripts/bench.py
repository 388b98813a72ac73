"""Timings of the parts: `python scripts/bench.py selection` (see `scripts/benches/`; `--help` after a name)."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def summary(name: str) -> str:
    """The first line of a bench's documentation."""
    module = ast.parse((ROOT / "scripts" / "benches" / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").splitlines()[0]


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "scripts" / "benches").glob("[a-z]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        lines = [f"  {name:<10}{summary(name)}" for name in known]
        sys.exit("\n".join(["usage: python scripts/bench.py NAME [options]   (--help after a name)", *lines]))
    sys.path.insert(0, str(ROOT))
    import_module(f"scripts.benches.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
