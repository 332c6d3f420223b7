"""What a run's processes need of the reward models that its recipe names.

reward worker   Services(reward_models=followers(config, url, run))
trainer       parts(name, config, url, run, directory, complete): a RewardModelTrainer and a Labeller to run
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.buffer import Buffer
from cluster.config import RewardModelSection, RunConfig
from cluster.errors import ConfigError
from cluster.plugins import lookup
from rewards.learned.base import RewardModelReward, Versioned, caption_judge
from rewards.learned.caption_labels import Complete
from rewards.learned.client import RewardModelClient
from rewards.learned.label_store import RedisLabels
from rewards.learned.labeler import Labeller
from rewards.learned.models import MODELS, model_of
from rewards.learned.publishing import RedisBoard
from rewards.learned.trainer import RewardModelTrainer
from rewards.registry import build_reward

INITIAL = "initial"
"""As an encoder: the policy's initial model."""


def followers(config: RunConfig, url: str, run: str, model_dir: str = "") -> dict[str, RewardModelClient]:
    """One per `[reward_models.NAME]`, for a reward worker; `model_dir` is what `encoder = "initial"` means."""
    found = {}
    for name in config.reward_models:
        section = placed(config, name, model_dir)

        def build(name: str = name, section: RewardModelSection = section):
            return model_of(name, section)

        found[name] = RewardModelClient(
            name, section.use, build, labels=labels_of(name, config, url, run), board=RedisBoard(url, run)
        )
    return found


def parts(
    name: str, config: RunConfig, url: str, run: str, directory: Path, complete: Complete | None, model_dir: str = ""
) -> tuple[RewardModelTrainer, Labeller]:
    """Return the trainer of the model of that name and its labeller; `complete` asks the section's judge.

    Both belong to a process of their own; `directory` is one that every reward worker can read.
    """
    section = placed(config, name, model_dir)
    judge = judge_of(name, config, complete)
    labels = labels_of(name, config, url, run)
    return (
        RewardModelTrainer(
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


def placed(config: RunConfig, name: str, model_dir: str) -> RewardModelSection:
    """The section of that name, with `encoder = "initial"` as the directory of the policy's initial model."""
    section = config.reward_models[name]
    if section.options.get("encoder") != INITIAL:
        return section
    assert model_dir, f"reward_models.{name} begins with the initial model, and nobody said where that is"
    return section.model_copy(update={"options": {**section.options, "encoder": model_dir}})


def labels_of(name: str, config: RunConfig, url: str, run: str) -> RedisLabels:
    section, version = config.reward_models[name], judge_of(name, config, None).version
    return RedisLabels(
        url,
        run,
        name,
        version=version,
        max_backlog=section.max_backlog,
        ttl_s=section.in_flight_ttl_s,
        order=section.order,
    )


def judge_of(name: str, config: RunConfig, complete: Complete | None) -> Versioned:
    """Return the judge that labels for the model of that name, as the rewards that use it say. Raises ConfigError if
    they disagree."""
    section = config.reward_models[name]
    compares = lookup(MODELS, section.use, f"reward_models.{name}").compares
    users = using(name, config)
    found = {used_as: r.labels_by(section, complete, compares=compares) for used_as, r in users.items()}
    if len({judge.version for judge in found.values()}) > 1:
        raise ConfigError(
            f"reward_models.{name} is used by the rewards {', '.join(found)}, which want labels of different kinds. "
            "Give each a section of its own."
        )
    return next(iter(found.values()), None) or caption_judge(section, complete, compares=compares)


def can_begin(config: RunConfig) -> None:
    """Groups that wait for a first version must be enough to publish one: while they wait no others are sampled.

    Raises ConfigError unless they bring twice the held-out labels that are needed, since which are held out is chance;
    and if evaluation tasks, which are graded before the first group, would wait as well.
    """
    graded = config.evaluation.reward or config.reward_names[0]
    num_groups = (config.learner.max_staleness + 1) * config.learner.groups_per_step
    for name, section in config.reward_models.items():
        for used_as, reward in using(name, config).items():
            waits = config.rewards[config.reward_names.index(used_as)].missing == "wait"
            each = reward.labels_per_group(config.rollout.group_size)
            if not waits or each is None:
                continue
            if used_as == graded:
                raise ConfigError(
                    f"reward '{used_as}' waits for the first version of reward_models.{name}, and cannot grade "
                    "evaluation tasks before there is one. Set evaluation.reward to another reward, which may have "
                    "weight = 0."
                )
            labels = num_groups * each
            held_out = labels * section.held_out_frac
            if held_out < 2 * section.min_held_out:
                raise ConfigError(
                    f"reward_models.{name} might never be published: reward '{used_as}' lets the first {num_groups} "
                    f"groups wait for it, which bring at most {labels} labels, {held_out:g} of them held out, and "
                    f"min_held_out = {section.min_held_out}. Raise held_out_frac, lower min_held_out to half of "
                    "that, or set missing = 0.0 instead of missing = 'wait'."
                )


def using(name: str, config: RunConfig) -> dict[str, RewardModelReward]:
    """The rewards that use the model, by name."""
    built = [build_reward(section, f"rewards[{i}]") for i, section in enumerate(config.rewards)]
    users = zip(config.reward_names, built, strict=True)
    return {
        used_as: reward for used_as, reward in users if isinstance(reward, RewardModelReward) and reward.model == name
    }


def relabelling(name: str, config: RunConfig, buffer: Buffer) -> Callable[[str], None]:
    """Tells the buffer of a new version of every reward that uses this model."""
    rewards = [*using(name, config)]
    return lambda version: buffer.relabel(dict.fromkeys(rewards, version)) if rewards else None
