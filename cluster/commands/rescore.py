"""Another judge on stored groups: `python -m cluster.commands.rescore RUN --reward NAME [section.key=value …]`.

Nothing of the run is changed: it says how the new scores agree with the stored ones, and what they cost.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster import config
from cluster.buffer.browse import Seen
from cluster.commands import app
from cluster.commands.group_rows import writer
from cluster.commands.inspect import Filter, stored_groups
from cluster.commands.run_lookup import connected
from cluster.config import RunConfig
from cluster.errors import ConfigError, nearest
from cluster.observability.live_table import show_facts
from cluster.types import Group, Scores
from rewards.aggregation.shadow_metrics import agreement, sign_flip_frac
from rewards.asking import ask
from rewards.base import Services
from rewards.judges.pool.archive import MemoryArchive
from rewards.monitors.cliff import flip_rate
from rewards.monitors.starc import group_distance
from rewards.registry import REWARDS, build_reward

AT_ONCE = 16
"""Groups asked about at a time."""


@dataclass(frozen=True)
class Rescored:
    """A stored group, what it is compared with and what the reward says now, [G] each."""

    group: Group
    before: np.ndarray
    now: Scores


def main(
    run: app.RunName,
    overrides: app.Overrides = None,
    reward: Annotated[
        str, typer.Option("--reward", metavar="NAME", help="Required: a reward of the run, or one by name.")
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="NAME", help="Stored scores to compare with.", show_default="the same reward's")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N groups.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write every group to a .jsonl.")] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Score a run's stored groups again with another judge, template or reward, and compare.

    RUN@N takes the groups that step N trained on.

    agreement: Somers' D within groups, 1 is the same order · sign_flip_frac: share of rollouts whose advantage would
    change its sign · flip_frac: groups whose best rollout is another · starc_distance: 0 where the two could not lead
    to different policies, 1 where they are opposite · cost and latency are of the new scores. Give a changed judge by
    overrides, such as judges.judge.model=other or rewards.0.options.template=rubric.

    Exit codes: 0 compared · 1 Redis does not answer, or nothing could be scored · 2 no such run or reward.
    """
    with app.exit_codes():
        found, step = app.find_step(run, directory)
        tree = app.recipe_of(found)
        settings = config.parse(config.overridden(tree, overrides or []), where=str(found / "config.toml"))
        settings, name = _with(settings, reward)
        against = against or name
        with connected(found) as connection, app.progress("reading groups") as advance:
            seen = stored_groups(found, connection, Filter(step=step))
            stored = _comparable(_told(seen, advance), against, step, limit)
        if not stored:
            raise ConfigError(
                f"run '{found.name}' has no stored group with scores of '{against}'"
                f"{'' if step is None else f' in step {step}'}. tracking.archived_groups sets how many trained "
                "groups stay; kanabo inspect shows what is there."
            )
        rows = asyncio.run(rescore(settings, name, against, stored))
        if to is not None:
            with writer(to) as write:
                for row in rows:
                    write(row_of(row))
    result = {"run": found.name, "reward": name, "against": against, **compare(rows)}
    if as_json:
        app.print_json(result)
    else:
        show_facts(f"kanabo · {found.name}: '{name}' again", result)
    if result["num_known"] == 0:
        raise typer.Exit(1)


def _with(settings: RunConfig, reward: str) -> tuple[RunConfig, str]:
    """The recipe with that reward in it, and what it is called. Raises ConfigError."""
    names = list(settings.reward_names)
    if not reward:
        raise ConfigError(f"--reward is missing. Rewards of this run: {', '.join(names)}.")
    if reward in names:
        return settings, reward

    if reward not in REWARDS and ":" not in reward:
        raise ConfigError(
            f"--reward '{reward}' is neither a reward of this run ({', '.join(names)}) nor one by name. "
            f"{nearest(reward, [*names, *REWARDS])}Known: {', '.join(sorted(REWARDS))}."
        )
    tree = config.tree_of(settings)
    tree["rewards"] = [*tree["rewards"], {"use": reward, "weight": 0.0}]
    settings = config.parse(tree)
    return settings, list(settings.reward_names)[-1]


def _told(seen: Iterable[Seen], advance: Any) -> Iterator[Seen]:
    for one in seen:
        advance(1)
        yield one


def _comparable(seen: Iterable[Seen], against: str, step: int | None, limit: int | None) -> list[Seen]:
    known = (s for s in seen if s.group is not None and against in s.scores)
    return [s for s in known if step is None or s.step == step - 1][:limit]


async def rescore(settings: RunConfig, name: str, against: str, stored: Sequence[Seen]) -> list[Rescored]:
    """What the reward called `name` says of these groups now. Raises ConfigError; a failed call is `failed`."""
    from rewards.judges.factory import open_judges

    place = list(settings.reward_names).index(name)
    section = settings.rewards[place]
    reward = build_reward(section, f"rewards[{place}]")
    services = Services(judges=open_judges(settings.judges, MemoryArchive()))
    places = asyncio.Semaphore(AT_ONCE)

    async def one(seen: Seen, advance: Any) -> Rescored:
        assert seen.group is not None
        async with places:
            scores, _ = await ask(reward, seen.group, services, section.timeout_s)
        advance(1)
        return Rescored(seen.group, seen.scores[against].values, scores)

    try:
        with app.progress("waiting for judges"):
            await reward.prepare(services)
        with app.progress(f"{len(stored)} groups", len(stored)) as advance:
            return await asyncio.gather(*(one(seen, advance) for seen in stored))
    finally:
        await services.close_judges()
        services.close()


def compare(rows: Sequence[Rescored]) -> dict[str, Any]:
    """Agreement, flips, coverage and cost; what is unknown on either side is in no mean."""
    before, now = np.concatenate([r.before for r in rows]), np.concatenate([r.now.values for r in rows])
    behind = [p for row in rows for p in row.now.provenance]
    latencies = [p.latency_s for p in behind if p.latency_s]
    notes = [p.note for p in behind if p.note]
    num_known = int(np.isfinite(now).sum())
    return {
        "num_groups": len(rows),
        "num_rollouts": len(now),
        "num_known": num_known,
        "mean_before": _mean(before),
        "mean_now": _mean(now),
        "agreement": _mean([agreement(r.now.values, r.before) for r in rows]),
        "starc_distance": _known(group_distance([r.before for r in rows], [r.now.values for r in rows])),
        "flip_frac": _known(flip_rate([r.before for r in rows], [r.now.values for r in rows])),
        "sign_flip_frac": _mean([sign_flip_frac(r.now.values, r.before) for r in rows]),
        "cost_tokens": sum(p.cost_tokens for p in behind),
        "latency_p50_s": float(np.median(latencies)) if latencies else None,
        "first_failure": notes[0] if num_known < len(now) and notes else None,
    }


def row_of(row: Rescored) -> dict[str, Any]:
    return {
        "id": row.group.id,
        "task": row.group.task.id,
        "before": row.before.tolist(),
        "now": row.now.values.tolist(),
        "version": row.now.version,
        "provenance": [asdict(p) for p in row.now.provenance],
    }


def _mean(values: Any) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    app.start(main)
