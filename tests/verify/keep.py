"""Results of `make verify`, kept with their commit in `tests/verified.json`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.end_to_end import jobs

VERIFIED = Path(__file__).parents[1] / "verified.json"


def keep(name: str, result: dict) -> None:
    """Replace the last result of this name; a tree with changes is named as such."""
    commit = subprocess.check_output(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=jobs.ROOT, text=True
    )
    rows = json.loads(VERIFIED.read_text()) if VERIFIED.exists() else []
    rows = [r for r in rows if r["name"] != name]
    rows.append({"name": name, **result, "commit": commit.strip(), "cores": os.cpu_count()})
    VERIFIED.write_text(json.dumps(rows, indent=2) + "\n")
