"""Stored groups of a run, with scores and rewards: `python -m cluster.commands.inspect RUN [--to FILE] [filters]`.

Works beside a live run, and on one that has ended: then its Redis is started for as long as this takes. Groups that the
last checkpoint has trimmed from Redis are read from the run's `groups/`, which has the last `tracking.archived_groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster.buffer.browse import STATES, Seen, look
from cluster.buffer.connection import Connection
from cluster.commands import app
from cluster.commands.group_rows import rollout_row, writer
from cluster.commands.run_lookup import connected
from cluster.errors import ConfigError
from cluster.storage import group_archive

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
    run: app.RunName,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write there: .jsonl, or .parquet by its end.")
    ] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Only {', '.join(STATES)}.")] = None,
    step: Annotated[int | None, typer.Option(metavar="N", help="Only groups that step N trains on.")] = None,
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only this task, by id or position.")] = None,
    min_reward: Annotated[float | None, typer.Option(metavar="X", help="Only a mean reward of at least X.")] = None,
    max_reward: Annotated[float | None, typer.Option(metavar="X", help="Only a mean reward of at most X.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N groups.", show_default="all")] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Show a run's stored groups, or write them to JSONL or Parquet: rollouts, scores, rewards.

    A group's reward is known once a step trains on it. --json prints the groups, or with --to what was written.

    Exit codes: 0 shown or written · 1 Redis does not answer · 2 no such run, filter or file type.
    """
    with app.exit_codes():
        found, step = app.find_step(run, directory, step)
        wanted = Filter(state, step, task, min_reward, max_reward)
        with connected(found) as connection:
            if to is None:
                shown = limit if as_json or limit is not None else SHOWN
                rows = list(_rows(found, connection, wanted, shown))
                app.print_json(rows) if as_json else _show(found, rows)
                return
            written = 0
            with writer(to) as write:
                for row in _rows(found, connection, wanted, limit):
                    write(row)
                    written += 1
    if as_json:
        app.print_json({"groups": written, "path": to.absolute()})
    else:
        print(f"{written} groups in {to}")


def _rows(run: Path, connection: Connection, wanted: Filter, limit: int | None) -> Iterator[dict[str, Any]]:
    given = 0
    with app.progress("reading groups") as advance:
        for seen in stored_groups(run, connection, wanted):
            advance(1)
            if limit is not None and given >= limit:
                return
            row = row_of(seen)
            if wanted.keeps(row):
                given += 1
                yield row


def stored_groups(run: Path, connection: Connection, wanted: Filter = Filter()) -> Iterator[Seen]:
    """Groups on disk that the filter may keep, oldest step first; then those in Redis that are not on disk."""
    known: set[str] = set()
    for path in group_archive.files(run / "groups"):
        entries = group_archive.try_index(path) or []
        known |= {entry.id for entry in entries}
        if wanted.state not in (None, "trained") or wanted.step not in (None, group_archive.step_of(path)):
            continue
        for entry in entries:
            try:
                yield _trained(group_archive.read(path, entry))
            except FileNotFoundError:  # a live run has removed its oldest
                break
    for seen in look(connection):
        if seen.id not in known:
            yield seen


def _trained(found: group_archive.ArchivedGroup) -> Seen:
    claim = found.group.claim
    return Seen(
        id=claim.id,
        policy=claim.policy,
        state="trained",
        step=found.step - 1,
        task=claim.task,
        version=claim.version,
        worker="",
        group=found.group,
        scores=found.scores,
        rewards=found.rewards,
    )


def row_of(seen: Seen) -> dict[str, Any]:
    """A group as plain values; what is unknown is None. Its step has the number that it has in metrics.jsonl."""
    group = seen.group
    rewards = None if seen.rewards is None else _numbers(seen.rewards)
    known = [reward for reward in rewards or () if reward is not None]
    return {
        "id": seen.id,
        "policy": seen.policy,
        "state": seen.state,
        "step": None if seen.step is None else seen.step + 1,
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
                "reward": name,
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


def _show(run: Path, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from cluster.observability.live_table import console, number

    caption = f"{len(rows)} groups; --limit shows more. Scores are means of the known."
    table = Table(title=f"kanabo · {run}", caption=caption, title_justify="left", caption_justify="left")
    rewards = sorted({score["reward"] for row in rows for score in row["scores"]})
    for column in ("group", "state", "step", "task", "reward", *rewards):
        table.add_column(column, no_wrap=True, overflow="fold")
    table.add_column("first rollout", overflow="fold")
    for row in rows:
        scores = {score["reward"]: _mean(score["values"]) for score in row["scores"]}
        table.add_row(
            row["id"],
            row["state"],
            number(row["step"], "d"),
            row["task"] or f"#{row['task_position']}",
            number(row["reward_mean"], ".3f"),
            *(number(scores.get(reward), ".3f") for reward in rewards),
            repr(row["rollouts"][0]["text"][:60]) if row["rollouts"] else "–",
        )
    console.print(table, markup=False)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    app.start(main)
