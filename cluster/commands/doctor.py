"""What is installed and reachable here, and what to do about what is not: `python -m cluster.commands.doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from cluster.commands import app
from cluster.commands.doctor_checks import CHECKS, Finding


def main(as_json: app.AsJson = False) -> None:
    """Check this machine: packages, compiler, GPU, Ray, Redis, shared memory, ports.

    A warning is about something that only some runs need. On a node of a cluster, run it there:
    ray job submit … -- python -m cluster.commands.doctor.

    Exit codes: 0 nothing failed · 1 at least one check failed · 2 wrong usage.
    """
    findings = []
    with app.progress("looking around", len(CHECKS)) as advance:
        for check in CHECKS:
            findings.extend(check())
            advance(1)
    if as_json:
        app.print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    raise typer.Exit(1 if any(finding.state == "fail" for finding in findings) else 0)


def _show(findings: list[Finding]) -> None:
    from rich.table import Table

    from cluster.observability.live_table import console

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(title="kanabo doctor", title_justify="left")
    for column in ("check", "", "seen", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.check, state, _escaped(finding.seen), _escaped(finding.remedy))
    console.print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    app.start(main)
