"""`python -m tests.bench [FIGURE …]`: measure, print, and keep in `results.json` beside the commit.

Each figure has a process of its own, so that none inherits another's threads or memory. The exit code is 1 if one of
them misses what it promises.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.figures import Figure, merged, table

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
FIGURES = ("sampling", "training", "shared_prefix", "publish", "buffer_vs_redis", "slow_judge", "e2e_vs_trl")
"""Modules of this package, each with a `measure() -> list[Figure]`."""


def main(names: Sequence[str]) -> int:
    if unknown := set(names) - set(FIGURES):
        print(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(FIGURES)}.", file=sys.stderr)
        return 2
    if len(names) == 1:
        load = os.getloadavg()[0]
        return keep(importlib.import_module(f"tests.bench.{names[0]}").measure(), load)
    codes = [
        subprocess.run([sys.executable, "-m", "tests.bench", name], cwd=ROOT).returncode for name in names or FIGURES
    ]
    return max(codes)


def keep(figures: Sequence[Figure], load: float) -> int:
    """Print and store; 1 if a floor is missed. `load` is the machine's load average before anything was measured."""
    cores = os.cpu_count() or 1
    rows = [figure.row(commit=commit(), cores=cores, load=load) for figure in figures]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps(merged(kept, rows), indent=2) + "\n")
    print(table(rows), flush=True)
    if load > cores:
        print(f"Before it began the load average was {load:.1f} on {cores} cores: measure again on a quiet machine.")
    return int(any(row["holds"] is False for row in rows))


def commit() -> str:
    """Of the code that was measured; named dirty if anything but the results differs from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
    changed = subprocess.check_output(
        [*git, "status", "--porcelain", "--", ".", ":!tests/bench/results.json"], text=True
    )
    return f"{name}-dirty" if changed else name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
