"""Stored groups of a run, with scores and rewards: `python -m cluster.inspect RUN [--to FILE] [filters]`.

Works beside a live run, and on one that has ended: then its Redis is started for as long as this takes. Groups of steps
before the last checkpoint have been trimmed; what is left of them is in the run's samples.jsonl and metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster import cli
from cluster.buffer.connection import Connection
from cluster.buffer.look import STATES, Seen, count, look
from cluster.errors import ConfigError
from cluster.groupfile import rollout_row, writer
from cluster.reach import connected

SCORE_STATES = ("scored", "failed", "abstained")
SHOWN = 20
"""Groups in the table unless --limit says otherwise."""


@dataclass(frozen=True)
class Filter:
    """Which groups; None asks for nothing. What is unknown does not pass a bound."""

    state: str | None = None
    step: int | None = None
    task: str | None = None
    min_reward: float | None = None
    max_reward: float | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in STATES:
            raise ConfigError(f"--state '{self.state}' is unknown. States: {', '.join(STATES)}.")

    def keeps(self, row: dict[str, Any]) -> bool:
        reward = row["reward_mean"]
        return (
            (self.state is None or row["state"] == self.state)
            and (self.step is None or row["step"] == self.step)
            and (self.task is None or self.task in (row["task"], str(row["task_position"])))
            and (self.min_reward is None or (reward is not None and reward >= self.min_reward))
            and (self.max_reward is None or (reward is not None and reward <= self.max_reward))
        )


def main(
    run: cli.RunName,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write there: .jsonl, or .parquet by its end.")
    ] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Only {', '.join(STATES)}.")] = None,
    step: Annotated[int | None, typer.Option(metavar="N", help="Only groups that step N trains on.")] = None,
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only this task, by id or position.")] = None,
    min_reward: Annotated[float | None, typer.Option(metavar="X", help="Only a mean reward of at least X.")] = None,
    max_reward: Annotated[float | None, typer.Option(metavar="X", help="Only a mean reward of at most X.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N groups.", show_default="all")] = None,
    directory: cli.RunsDir = None,
    as_json: cli.AsJson = False,
) -> None:
    """Show a run's stored groups, or write them to JSONL or Parquet: rollouts, scores, rewards.

    A group's reward is known once a step has cut it. --json prints the groups, or with --to what was written.

    Exit codes: 0 shown or written · 1 Redis does not answer · 2 no such run, filter or file type.
    """
    with cli.exit_codes():
        wanted = Filter(state, step, task, min_reward, max_reward)
        found = cli.find_run(run, directory)
        with connected(found) as connection:
            if to is None:
                shown = limit if as_json or limit is not None else SHOWN
                rows = list(_rows(connection, wanted, shown))
                cli.print_json(rows) if as_json else _show(found, rows, count(connection))
                return
            written = 0
            with writer(to) as write:
                for row in _rows(connection, wanted, limit):
                    write(row)
                    written += 1
    if as_json:
        cli.print_json({"groups": written, "path": to.absolute()})
    else:
        print(f"{written} groups in {to}")


def _rows(connection: Connection, wanted: Filter, limit: int | None) -> Iterator[dict[str, Any]]:
    given = 0
    with cli.progress("reading groups", count(connection)) as advance:
        for seen in look(connection):
            advance(1)
            row = row_of(seen)
            if limit is not None and given >= limit:
                return
            if wanted.keeps(row):
                given += 1
                yield row


def row_of(seen: Seen) -> dict[str, Any]:
    """A group as plain values; what is unknown is None."""
    group = seen.group
    rewards = None if seen.rewards is None else _numbers(seen.rewards)
    known = [reward for reward in rewards or () if reward is not None]
    return {
        "id": seen.id,
        "policy": seen.policy,
        "state": seen.state,
        "step": seen.step,
        "version": seen.version,
        "worker": seen.worker,
        "task_position": seen.task,
        "task": group.task.id if group else None,
        "source": group.task.source if group else None,
        "prompt": group.task.prompt if group else None,
        "answer": group.task.answer if group else None,
        "reward_mean": sum(known) / len(known) if known else None,
        "rewards": rewards,
        "scores": [
            {
                "signal": name,
                "version": scores.version,
                "values": _numbers(scores.values),
                "states": [SCORE_STATES[state] for state in scores.state],
                "provenance": [asdict(p) for p in scores.provenance],
            }
            for name, scores in sorted(seen.scores.items())
        ],
        "rollouts": [rollout_row(rollout) for rollout in (group.rollouts if group else ())],
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _show(run: Path, rows: list[dict[str, Any]], stored: int) -> None:
    from rich.table import Table

    from cluster.table import console, number

    caption = f"{len(rows)} of {stored} stored groups; those before the last checkpoint are trimmed."
    table = Table(title=f"kanabo · {run}", caption=caption, title_justify="left", caption_justify="left")
    for column in ("group", "state", "step", "task", "reward", "scores", "first rollout"):
        table.add_column(column, no_wrap=column not in ("scores", "first rollout"), overflow="fold")
    for row in rows:
        table.add_row(
            row["id"],
            row["state"],
            number(row["step"], "d"),
            row["task"] or f"#{row['task_position']}",
            number(row["reward_mean"], ".3f"),
            ", ".join(score["signal"] for score in row["scores"]) or "–",
            repr(row["rollouts"][0]["text"][:60]) if row["rollouts"] else "–",
        )
    console.print(table, markup=False)


if __name__ == "__main__":
    cli.start(main)
