"""What is looked at before anything starts: what a user can get wrong ends here, in one line and with exit code 2."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from cluster import checkpoint
from cluster.buffer import Limits
from cluster.config import RunConfig, without_password
from cluster.errors import ConfigError
from cluster.plugins import build

BYTES_PER_TOKEN = 9
"""A stored token: id, mask, log-prob."""
BYTES_PER_ROLLOUT = 400


def run_directory(settings: RunConfig) -> Path:
    """Absolute directory of the run.

    Raises ConfigError for a relative `run.dir` inside a submitted job, whose working directory is thrown away.
    """
    base = Path(settings.run.dir)
    if not base.is_absolute() and _in_submitted_job():
        if "KANABO_RUNS" not in os.environ:
            raise ConfigError(
                f"run.dir = '{base}' is relative, and a submitted job's working directory is thrown away. "
                "Give an absolute path that all nodes see, or set KANABO_RUNS in the job's runtime environment."
            )
        base = Path(os.environ["KANABO_RUNS"])
    return (base / settings.run.name).absolute()


def _in_submitted_job() -> bool:
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return "job_submission_id" in job.get("metadata", {})


def plugins(settings: RunConfig) -> None:
    """Build every plug-in once, so that a wrong name or option is known before an engine starts."""
    from actors.environments import ENVIRONMENTS
    from actors.tasks import TASKS
    from learner.advantages import ADVANTAGES
    from learner.losses import LOSSES
    from rewards.zoo import build_signal

    source = build(TASKS, settings.tasks.use, settings.tasks.options, "tasks")
    if not len(source.train()):
        raise ConfigError(f"tasks: '{settings.tasks.use}' gives no training task.")
    environment = settings.rollout.environment
    build(ENVIRONMENTS, environment.use, environment.options, "rollout.environment")
    for i, reward in enumerate(settings.rewards):
        build_signal(reward, f"rewards[{i}]")
    build(ADVANTAGES, settings.learner.advantage.use, settings.learner.advantage.options, "learner.advantage")
    build(LOSSES, settings.learner.loss.use, settings.learner.loss.options, "learner.loss")


def storage(settings: RunConfig) -> None:
    """Raises ConfigError if the user's own Redis cannot be reached."""
    if settings.buffer.url is None:
        return
    url = str(settings.buffer.resolved())
    import redis

    try:
        redis.Redis.from_url(url, socket_connect_timeout=5).ping()
    except ValueError:  # its text may hold a part of the password
        raise ConfigError(
            f"buffer.url = '{without_password(settings.buffer.url)}' is no URL of a Redis: "
            "redis://:PASSWORD@HOST:PORT/0, where a password's own / : @ are written %2F %3A %40."
        ) from None
    except redis.RedisError as error:
        raise ConfigError(
            f"buffer.url = '{without_password(settings.buffer.url)}' does not answer: {error}. "
            "Check host, port and password, or leave buffer.url out and the run starts its own server."
        ) from error


def claim_directory(settings: RunConfig, directory: Path) -> None:
    """Raises ConfigError if the directory holds a run and `resume = "off"`, or one of another recipe."""
    used = (directory / "metrics.jsonl").exists() or checkpoint.committed(directory / "checkpoints")
    if used and settings.resume == "off":
        raise ConfigError(
            f"'{directory}' already holds a run and resume = \"off\". Choose another run.name, or resume=auto."
        )


def identity(settings: RunConfig, directory: Path) -> str:
    """The run's name on the cluster and in Redis: two directories never share one, whatever their runs are called."""
    path = directory / "id"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f"{settings.run.name}-{secrets.token_hex(3)}")
        temporary.replace(path)
    return path.read_text()


def resume_point(settings: RunConfig, directory: Path) -> Path | None:
    """The checkpoint to continue from, if any. Raises ConfigError if a named one is none."""
    if settings.resume == "off":
        return None
    if settings.resume == "auto":
        found = checkpoint.committed(directory / "checkpoints")
        return found[-1] if found else None
    checkpoint.read(Path(settings.resume))
    return Path(settings.resume)


def limits(settings: RunConfig) -> Limits:
    """What the buffer must know of a recipe."""
    waits = any(r.on_missing == "wait" and r.when == "admit" for r in settings.rewards)
    workers = settings.reward_workers
    return Limits(
        groups_per_step=settings.learner.groups_per_step,
        max_staleness=settings.learner.max_staleness,
        when_late=settings.learner.when_late,
        admit=tuple(settings.admit_rewards),
        late=tuple(n for n in settings.reward_names if n not in settings.admit_rewards),
        lease_s=settings.rollout.lease_s,
        score_deadline_s=workers.max_wait_s if waits else workers.deadline_s,
        num_tasks=None,
    )


def plan(settings: RunConfig, directory: Path) -> str:
    """What the numbers of a recipe mean."""
    learner, rollout = settings.learner, settings.rollout
    groups, size = learner.groups_per_step, rollout.group_size
    outstanding = (learner.max_staleness + 1) * groups
    tokens = min(settings.engine.max_model_len, rollout.max_tokens * rollout.max_turns + 256)
    megabytes = outstanding * size * (tokens * BYTES_PER_TOKEN + BYTES_PER_ROLLOUT) / 1e6
    rewards = ", ".join(f"{n} × {r.weight:g}" for n, r in zip(settings.reward_names, settings.rewards, strict=True))
    return "\n".join(
        [
            f"{groups} tasks × {size} rollouts = {groups * size} samples a step, 1 optimiser step, "
            f"staleness ≤ {learner.max_staleness}, at most {outstanding} groups outstanding "
            f"(≤ {max(1, round(megabytes))} MB in Redis).",
            f"{_count(rollout.workers, 'engine')} ({settings.engine.use}), "
            f"{_count(settings.reward_workers.workers, 'reward worker')}, {_count(learner.ranks, 'learner rank')} "
            f"(ZeRO-{learner.zero_stage}, {learner.dtype}).",
            f"{learner.steps} steps on '{settings.tasks.use}', model '{settings.model.path}', rewards: {rewards}.",
            f"{_often(settings.evaluation.every_steps, 'Evaluation')}; "
            f"{_often(settings.checkpoint.every_steps, 'checkpoint')}.",
            f"Everything goes to {directory}.",
        ]
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _often(every: int, what: str) -> str:
    return f"{what} every {every} steps" if every else f"{what} at the end only"
