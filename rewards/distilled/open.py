"""What a run's processes need of the distilled models that its recipe names.

reward worker   Services(distilled=followers(config, url, run))
distiller       parts(name, config, url, run, directory, complete): a Distiller and a Labeller to run
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.buffer import Buffer
from cluster.config import DistilledSection, RunConfig
from cluster.plugins import lookup
from rewards.base import Signal
from rewards.distilled.captions import CaptionJudge, Complete
from rewards.distilled.distiller import Distiller, model_of
from rewards.distilled.follower import Follower
from rewards.distilled.labeller import Labeller
from rewards.distilled.models import MODELS
from rewards.distilled.publishing import RedisBoard
from rewards.distilled.store import RedisLabels
from rewards.zoo import build_signal


def followers(config: RunConfig, url: str, run: str) -> dict[str, Follower]:
    """One per `[distilled.NAME]`, for a reward worker."""
    found = {}
    for name, section in config.distilled.items():

        def build(name: str = name, section: DistilledSection = section):
            return model_of(name, section)

        found[name] = Follower(
            name, section.use, build, labels=labels_of(name, section, url, run), board=RedisBoard(url, run)
        )
    return found


def parts(
    name: str, config: RunConfig, url: str, run: str, directory: Path, complete: Complete
) -> tuple[Distiller, Labeller]:
    """Who learns the model of that name, and who labels for it; `complete` asks the section's judge.

    Both belong to a process of their own; `directory` is one that every reward worker can read.
    """
    section = config.distilled[name]
    judge = judge_of(name, section, complete)
    labels = labels_of(name, section, url, run)
    return (
        Distiller(
            name,
            section,
            labels=labels,
            board=RedisBoard(url, run),
            directory=directory / name,
            relabel=relabelling(name, config, Buffer(url, run)),
        ),
        Labeller(
            labels,
            judge,
            name=section.judge,
            version=judge.version,
            batch_size=section.batch_size,
            max_in_flight=section.max_in_flight,
            max_attempts=section.max_attempts,
            # Below the time in flight, or a slow answer is asked for twice.
            timeout_s=0.8 * section.in_flight_ttl_s,
        ),
    )


def labels_of(name: str, section: DistilledSection, url: str, run: str) -> RedisLabels:
    version = judge_of(name, section, None).version
    return RedisLabels(
        url,
        run,
        name,
        version=version,
        max_backlog=section.max_backlog,
        ttl_s=section.in_flight_ttl_s,
        order=section.order,
    )


def judge_of(name: str, section: DistilledSection, complete: Complete | None) -> CaptionJudge:
    compares = lookup(MODELS, section.use, f"distilled.{name}").compares
    return CaptionJudge(complete, goal=section.goal, judge=section.judge, compares=compares)


def relabelling(name: str, config: RunConfig, buffer: Buffer) -> Callable[[str], None]:
    """Tells the buffer of a new version of every reward that uses this model."""

    def uses(signal: Signal) -> bool:
        return signal.announced and getattr(signal, "model", None) == name

    built = [build_signal(section, f"rewards[{i}]") for i, section in enumerate(config.rewards)]
    rewards = [r for r, signal in zip(config.reward_names, built, strict=True) if uses(signal)]
    return lambda version: buffer.relabel(dict.fromkeys(rewards, version)) if rewards else None
