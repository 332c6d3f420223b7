"""Write the tables of docs/metrics.md from the declarations: `python -m cluster.commands.metrics_reference`."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.metrics import SECTIONS, Metric

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
HEAD = "| metric | unit | Prometheus | meaning | when it is off |\n|---|---|---|---|---|\n"


def written(text: str) -> str:
    """Return the page with every section's table made anew; what is written around the tables stays.

    Raises ValueError for a section of declarations that the page has no table for.
    """
    for section, metrics in SECTIONS.items():
        table = HEAD + "".join(map(_row, metrics))
        pattern = re.compile(rf"(^## {re.escape(section)}\n(?:(?!^## ).*\n)*?)(?:^\|.*\n)+", re.M)
        text, found = pattern.subn(lambda match, table=table: match[1] + table, text, count=1)
        if not found:
            raise ValueError(f"{PAGE} has no table under '## {section}'.")
    return text


def _row(metric: Metric) -> str:
    advice = f"{metric.advice} " if metric.advice else ""
    return f"| `{metric.name}` | {metric.unit} | {metric.kind} | {metric.help} | {advice}|\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
