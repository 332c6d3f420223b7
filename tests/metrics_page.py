"""What docs/metrics.md explains, for tests that have metrics in hand."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
ROWS = re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \|(.*)\|$", PAGE.read_text("utf-8"), re.M)
METRICS = [row[0] for row in ROWS]
FILLED = re.compile(r"NAME|REASON|ROLE")
EXPLAINED = [re.compile("[A-Za-z0-9_.:-]+".join(map(re.escape, FILLED.split(name)))) for name in METRICS]


def unexplained(names: Iterable[str], policies: Iterable[str] = ()) -> list[str]:
    """Those of a run's metrics that the page does not explain; other policies' stand under their names."""
    prefixes = tuple(f"{policy}/" for policy in policies)
    own = {next((n.removeprefix(p) for p in prefixes if n.startswith(p)), n) for n in names}
    return sorted({n for n in own if n != "step" and not any(p.fullmatch(n) for p in EXPLAINED)})
