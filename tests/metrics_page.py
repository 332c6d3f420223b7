"""What `cluster.metrics` declares, for tests that have metrics in hand."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.metrics import METRICS


def unexplained(names: Iterable[str], policies: Iterable[str] = ()) -> list[str]:
    """Those of a run's metrics that are not declared; other policies' stand under their names."""
    prefixes = tuple(f"{policy}/" for policy in policies)
    own = {next((n.removeprefix(p) for p in prefixes if n.startswith(p)), n) for n in names}
    return sorted({n for n in own if n != "step" and not any(m.pattern.fullmatch(n) for m in METRICS.values())})
