"""Results of `make verify`, kept with their commit in `tests/verified.json`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.end_to_end import jobs

VERIFIED = Path(__file__).parents[1] / "verified.json"


def keep(name: str, result: dict) -> None:
    """Replace the last result of this name; a tree with changes beside the results is named as such."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{VERIFIED.relative_to(jobs.ROOT)}")
    rows = json.loads(VERIFIED.read_text()) if VERIFIED.exists() else []
    rows = [r for r in rows if r["name"] != name]
    rows.append({"name": name, **result, "commit": commit + "-dirty" * bool(changed), "cores": os.cpu_count()})
    VERIFIED.write_text(json.dumps(rows, indent=2) + "\n")


def _git(*command: str) -> str:
    return subprocess.check_output(["git", *command], cwd=jobs.ROOT, text=True).strip()
