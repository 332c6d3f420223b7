"""How good a model is at some tasks: `python -m cluster.commands.evaluate MODEL --tasks TASKS [section.key=value …]`.

One engine in this process, no Ray, no Redis; the same environments, answers and rewards as in a run.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster import config
from cluster.commands import app
from cluster.commands.export import choose
from cluster.commands.group_rows import rollout_row, writer
from cluster.config import VOTES, RunConfig
from cluster.errors import ConfigError, nearest
from cluster.observability.live_table import show_facts
from cluster.storage.model_aliases import FIXED
from cluster.types import Group
from rewards.aggregation.voting import GradedSample, Voting, verdicts, voted
from rewards.parsing.answers import answer_of

DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")


def main(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, an id, `tiny:addition`, or RUN@N, RUN@latest.")
    ],
    overrides: app.Overrides = None,
    tasks: Annotated[
        str,
        typer.Option("--tasks", metavar="TASKS", help="Required: a recipe, a data file, or a source."),
    ] = "",
    reward: Annotated[
        str, typer.Option(metavar="NAME", help="What grades.", show_default="as in the recipe, else exact")
    ] = "",
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Rollouts per task.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, metavar="T", help="0 is greedy.", show_default="0, or 1 with several samples")
    ] = None,
    vote: Annotated[
        str, typer.Option(metavar="KIND", help="Choose one sample a task: majority, weighted, borda or self_prm.")
    ] = "",
    by: Annotated[str, typer.Option(metavar="NAME", help="The reward whose values weigh, rank or judge.")] = "",
    power: Annotated[float, typer.Option(min=0, metavar="P", help="Borda: a rank's weight.")] = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N tasks.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write every rollout to a .jsonl.")] = None,
    directory: app.RunsDir = None,
    as_json: app.AsJson = False,
) -> None:
    """Grade a model on evaluation tasks.

    accuracy: mean reward, with its 95 % interval over tasks · pass@k: share of tasks with a reward above 0.5 among k
    samples. A source without evaluation tasks is asked for its training tasks, and that is said.

    --vote: vote_accuracy is the mean reward of one sample a task, the first of the answer with most votes. majority:
    every sample has one; weighted: its value by the reward --by, cut to 0 … 1; borda: of N samples, rank r has
    (N − r + 1)^P (arXiv:2502.18581); self_prm: the sample with the largest value, as when the model judges its own
    steps (arXiv:2505.11227), with the precision of those verdicts. Where nobody votes the first sample counts, and
    num_without_vote counts that.

    Exit codes: 0 graded · 1 the engine failed, or nothing could be graded · 2 no such model, tasks or reward.
    """
    with app.exit_codes():
        if not tasks:
            raise ConfigError("--tasks is missing: a recipe, a data file, or the name of a source such as 'addition'.")
        if to is not None and to.suffix != ".jsonl":
            raise ConfigError(f"--to '{to}' does not end in .jsonl, which is what is written.")
        settings = resolve(model_of(model, directory), tasks, reward, overrides or [])
        voting = voting_of(vote, by, power, samples, settings)
        heat = temperature if temperature is not None else (0.0 if samples == 1 else 1.0)
        result, rows = asyncio.run(evaluate(settings, samples, heat, limit, voting))
        if to is not None:
            with writer(to) as write:
                for row in rows:
                    write(row)
    if as_json:
        app.print_json(result)
    else:
        show_facts(f"kanabo · {result['model']} on {result['tasks']}", result)
    if result["num_graded"] == 0:
        raise typer.Exit(1)


def model_of(name: str, directory: str | None) -> str:
    """What a recipe calls the model: the path of the checkpoint that `RUN@N` or `RUN@latest` names, else the name.

    Raises ConfigError for a run or step that there is not, and for aliases that only a run can know.
    """
    if (Path(name) / "config.json").is_file():
        return name
    run, at, _ = name.rpartition("@")
    if name in FIXED or run == config.POLICY:
        raise ConfigError(f"'{name}' is an alias within a recipe. Here RUN@N or RUN@latest names a run's checkpoint.")
    if (Path(name) / "config.toml").is_file():
        raise ConfigError(f"'{name}' is a run's directory. Name one of its models: {name}@latest, or {name}@N.")
    if not at:
        return name
    source = choose(*app.find_step(name, directory))
    if not (source / "config.json").is_file():
        raise ConfigError(
            f"'{name}' is an adapter without its model ({source}). `kanabo export` makes a model of both; name that "
            "directory."
        )
    return str(source)


def resolve(model: str, tasks: str, reward: str, overrides: Sequence[str]) -> RunConfig:
    """The recipe of this evaluation. Raises ConfigError."""
    if tasks.endswith(".toml"):
        tree: dict[str, Any] = config.load(tasks).model_dump(mode="json", exclude_none=True)
    elif tasks.endswith(DATA):
        tree = {"tasks": {"use": "files", "options": {"path": tasks}}}
    else:
        tree = {"tasks": {"use": tasks}}
    tree["model"] = {**tree.get("model", {}), "path": model, "options": {}}
    if reward:
        tree["rewards"] = [{"use": reward}]
        tree.get("evaluation", {}).pop("reward", None)
    return config.parse(config.overridden(tree, overrides), where=tasks)


def voting_of(kind: str, by: str, power: float, samples: int, settings: RunConfig) -> Voting | None:
    """What the options say; None without a vote. Raises ConfigError."""
    if not kind:
        if by:
            raise ConfigError("--by names what weighs votes, and there is no --vote. Add --vote borda or weighted.")
        return None
    if kind not in VOTES:
        raise ConfigError(f"--vote '{kind}' is unknown. {nearest(kind, VOTES)}There are: {', '.join(VOTES)}.")
    if samples < 2:
        raise ConfigError("--vote chooses among samples of a task. Add --samples 8 or so.")
    if kind == "majority" and by:
        raise ConfigError("--vote majority counts every sample once. Leave out --by, or vote by weighted or borda.")
    if kind != "majority" and by not in settings.reward_names:
        names = settings.reward_names
        raise ConfigError(
            f"--vote {kind} wants --by NAME, a reward of the recipe; '{by}' is none. {nearest(by, names)}"
            f"There are: {', '.join(names)}."
        )
    return Voting(kind, by, power)


async def evaluate(
    settings: RunConfig, samples: int, temperature: float, limit: int | None, voting: Voting | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures, and every rollout as a row. Raises ConfigError, InfrastructureError."""
    from cluster.workers.standalone import Alone

    with app.progress(f"loading {settings.model.path}"):
        alone = Alone(settings, voting.by if voting else "")
        await alone.start()
    try:
        tasks = alone.tasks(limit)
        with app.progress(f"{len(tasks)} tasks, {samples} rollouts each", len(tasks) * samples) as advance:
            groups = await alone.play(list(tasks) * samples, temperature, lambda: advance(1))
        with app.progress("grading", len(groups)) as advance:
            rewards = await alone.grade(groups, lambda: advance(1))
        values = [0.0] * len(groups)
        if voting is not None and voting.by:
            with app.progress(f"asking the reward {voting.by}", len(groups)) as advance:
                values = await alone.grade(groups, lambda: advance(1), voting.by)
    finally:
        await alone.close()
    result = {
        "model": settings.model.path,
        "tasks": settings.tasks.use,
        "held_out": alone.held_out,
        "reward": alone.reward,
        "temperature": temperature,
        "samples": samples,
        **figures(groups, rewards),
        **(vote_figures(voting, groups, rewards, values) if voting else {}),
        "num_failed": alone.failures,
        "num_left_out": alone.left_out,
    }
    rows = [_row(group, reward) for group, reward in zip(groups, rewards, strict=True)]
    if voting is not None and voting.by:
        rows = [row | {"vote_value": value} for row, value in zip(rows, values, strict=True)]
    return result, rows


def figures(groups: Sequence[Group], rewards: Sequence[float]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, pass@k, lengths. Unknown rewards are counted and in no mean."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for group, reward in zip(groups, rewards, strict=True):
        if math.isfinite(reward):
            by_task[group.task.id].append(reward)
    means = np.array([np.mean(values) for values in by_task.values()])
    solved = [max(values) > 0.5 for values in by_task.values()]
    rollouts = [group.rollouts[0] for group in groups]
    return {
        "num_tasks": len({group.task.id for group in groups}),
        "num_graded": sum(map(len, by_task.values())),
        "accuracy": float(means.mean()) if len(means) else None,
        "accuracy_ci95": float(1.96 * means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None,
        "pass_at_k": float(np.mean(solved)) if solved else None,
        "length_tokens": float(np.mean([r.num_tokens for r in rollouts])) if rollouts else None,
        "truncated_frac": float(np.mean([r.truncated for r in rollouts])) if rollouts else None,
    }


def vote_figures(
    voting: Voting, groups: Sequence[Group], rewards: Sequence[float], values: Sequence[float]
) -> dict[str, Any]:
    """Mean reward of the sample that each task's vote chooses, and how many tasks had no vote."""
    samples = [
        GradedSample(group.task.id, reward, answer_of(group.rollouts[0]), value)
        for group, reward, value in zip(groups, rewards, values, strict=True)
    ]
    found = voted(voting, samples) | (verdicts(samples) if voting.kind == "self_prm" else {})
    return {
        "vote": voting.kind,
        "vote_by": voting.by or None,
        **{name: value if math.isfinite(value) else None for name, value in found.items()},
        "num_without_vote": int(found["num_without_vote"]),
    }


def _row(group: Group, reward: float) -> dict[str, Any]:
    row = {"task": group.task.id, "prompt": group.task.prompt, "reference": group.task.answer, "reward": reward}
    return row | rollout_row(group.rollouts[0])


if __name__ == "__main__":
    app.start(main)
