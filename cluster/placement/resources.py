"""What one worker of each role takes, on which nodes it may be, and what of it all finds no room. Ray is not asked.

any        wherever there is room
separated  every role on nodes with its label; room for all ranks of the learner in one placement group
colocated  a placement group with a bundle for each rank of the learner, which its engines share
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.config import POLICY, JudgeSection, RunConfig
from cluster.errors import ConfigError

LABEL = "kanabo-role"
"""Ray label of nodes; `deploy/kuberay` sets it."""
CPU_SHARE = 0.9
"""CPUs of an engine or a learner rank without a GPU: both fit on two CPUs beside a reward worker."""
NODES_OF = {"reward_model": "reward", "generator": "rollout", "scorer": "judge"}
"""Roles whose nodes are another's."""


@dataclass(frozen=True)
class ResourceRequest:
    """Room for one process, or for several that stay together."""

    role: str
    resources: dict[str, float]
    selector: dict[str, str] = field(default_factory=dict)
    """Ray labels of the node."""

    def __str__(self) -> str:
        room = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items() if amount)
        return room + (f" on nodes with {_labels(self.selector)}" if self.selector else "")


def place_of(config: RunConfig, role: str, gpu: bool) -> ResourceRequest:
    """What one worker of a role asks for where it is placed alone; a role is a kind, or `kind:NAME`."""
    kind, _, name = role.partition(":")
    own = config.of_policy(name) if name in config.policies else config
    wanted = {
        "rollout": {"CPU": 1.0 if gpu else CPU_SHARE, "GPU": float(own.engine.tensor_parallel)},
        "learner": {"CPU": 1.0 if gpu else CPU_SHARE, "GPU": 1.0},
        "reward": {"CPU": 0.1},
        "reward_model": {"CPU": 1.0},
        "generator": {"CPU": 1.0, "GPU": float(config.engine.tensor_parallel)},
    }
    if kind == "judge":
        judge = config.judges[name]
        wanted["judge"] = {"CPU": judge.cpus, "GPU": judge.gpus}
    if kind == "scorer":
        scorer = config.scorers[name]
        wanted["scorer"] = {"CPU": scorer.cpus, "GPU": scorer.gpus}
    resources = {name: amount for name, amount in wanted[kind].items() if gpu or name != "GPU"}
    return ResourceRequest(role, resources, _selector(config, role))


def _selector(config: RunConfig, role: str) -> dict[str, str]:
    kind, section = role.partition(":")[0], config.placement
    own = {LABEL: NODES_OF.get(kind, kind)} if section.layout == "separated" else {}
    return own | section.nodes.get(kind, {}) | section.nodes.get(role, {})


def places(config: RunConfig, gpu: bool, counts: Mapping[str, int] | None = None) -> list[ResourceRequest]:
    """All that the run takes, with so many workers of each role, by default as many as the recipe says."""
    counts = roles(config) if counts is None else counts
    alone, bundles = dict(counts), reserved(config, gpu)
    if config.placement.layout == "colocated":
        alone["rollout"] = max(0, alone["rollout"] - config.rollout.workers)
    bundles = bundles or [place_of(config, "learner", gpu)] * config.learner.ranks
    for name in config.policies:
        bundles += [place_of(config, f"learner:{name}", gpu)] * config.of_policy(name).learner.ranks
    return bundles + [place for role, count in alone.items() for place in [place_of(config, role, gpu)] * count]


def roles(config: RunConfig) -> dict[str, int]:
    """Role → workers that a recipe asks for, the learners' ranks aside."""
    engines = {f"rollout:{name}": config.of_policy(name).rollout.workers for name in config.policies}
    judges = {f"judge:{name}": judge.replicas for name, judge in placed_judges(config).items()}
    reward_models = {f"reward_model:{name}": 1 for name in config.reward_models}
    scorers = {f"scorer:{name}": scorer.replicas for name, scorer in config.scorers.items()}
    generators = {f"generator:{name}": 1 for name in config.generators}
    own = {"rollout": config.rollout.workers, "reward": config.reward_workers.workers}
    return own | engines | judges | reward_models | scorers | generators


def placed_judges(config: RunConfig) -> dict[str, JudgeSection]:
    """Judges that take room of their own."""
    return {name: judge for name, judge in config.judges.items() if judge.kind == "vllm"}


def needed_cpus(config: RunConfig) -> float:
    return sum(place.resources["CPU"] for place in places(config, gpu=False))


def reserved(config: RunConfig, gpu: bool) -> list[ResourceRequest]:
    """The bundles of the run's placement group, one for each rank of the learner; none where it has no group."""
    rank = place_of(config, "learner", gpu)
    if config.placement.layout == "any":
        return []
    if config.placement.layout == "separated":
        return [rank] * config.learner.ranks
    engines = engines_of_rank(config)
    room = {"CPU": 1.0 + engines} | ({"GPU": 1.0} if gpu else {})
    role = f"learner with {engines} rollout"
    selector = rank.selector | _selector(config, "rollout")
    return [ResourceRequest(role, room, selector)] * config.learner.ranks


def engines_of_rank(config: RunConfig) -> int:
    return config.rollout.workers // config.learner.ranks


def unplaceable(
    wanted: Sequence[ResourceRequest], nodes: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]
) -> list[str]:
    """What of `wanted` finds no node: "rollout: 2 of 4 places with 2 GPU on nodes with …", or nothing.

    `nodes`: resources and labels of each. First fit; the choosy before the others, then the largest first: exact where
    all places of a kind are equal, as they are here, up to packing. Raises ConfigError for a selector that is none.
    """
    left = [(dict(resources), labels) for resources, labels in nodes]
    homeless: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    unlabelled: dict[tuple[str, str], str] = {}
    for place in sorted(wanted, key=_difficulty, reverse=True):
        kind = (place.role, str(place))
        asked[kind] += 1
        suited = [resources for resources, labels in left if matches(place.selector, labels)]
        home = next((r for r in suited if all(r.get(k, 0) >= v - 1e-9 for k, v in place.resources.items())), None)
        if home is None:
            homeless[kind] += 1
            if not suited:
                unlabelled[kind] = f" (no node has {_labels(place.selector)})" if place.selector else ""
            continue
        for name, amount in place.resources.items():
            home[name] = home.get(name, 0) - amount
    return [
        f"{kind[0]}: {count} of {asked[kind]} places with {kind[1]}{unlabelled.get(kind, '')}"
        for kind, count in homeless.items()
    ]


def _difficulty(place: ResourceRequest) -> tuple[int, float, float]:
    return len(place.selector), place.resources.get("GPU", 0), place.resources.get("CPU", 0)


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether Ray would place something with this selector on a node with these labels. Raises ConfigError."""
    return all(_matches(name, condition, labels.get(name)) for name, condition in selector.items())


def _matches(name: str, condition: str, value: str | None) -> bool:
    found = re.fullmatch(r"(!?)(?:in\(([^()]+)\)|([^()!, ]+))", condition)
    if found is None:
        raise ConfigError(
            f"placement.nodes: '{name}' = '{condition}' is no condition of a label. "
            "Write VALUE, !VALUE, in(VALUE, VALUE) or !in(VALUE, VALUE)."
        )
    values = [v.strip() for v in (found[2] or found[3]).split(",")]
    return (value in values) != bool(found[1])


def _labels(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={condition}" for name, condition in selector.items())


def describe(resources: Mapping[str, float], labels: Mapping[str, str], gpu: bool) -> str:
    room = ", ".join(f"{resources.get(name, 0):g} {name}" for name in (["CPU", "GPU"] if gpu else ["CPU"]))
    role = labels.get(LABEL)
    return f"{room} ({LABEL}={role})" if role else room


def labelled(config: RunConfig) -> str:
    """Roles that are not placed just anywhere: "rollout on nodes with kanabo-role=rollout; …"."""
    wanted = {place.role: place.selector for place in places(config, gpu=False) if place.selector}
    return "; ".join(f"{role} on nodes with {_labels(selector)}" for role, selector in wanted.items())


def threads(config: RunConfig, part: str, policy: str = POLICY) -> int:
    """CPU threads for one `engine` or one `learner` rank: by default the cores are shared out evenly.

    More threads than cores make both slower: on two cores a step of the quickstart takes 0.8 s with one each, 2.4 s
    with two for the learner.
    """
    own = config.of_policy(policy)
    chosen = own.engine.threads if part == "engine" else own.learner.threads
    policies = map(config.of_policy, config.policy_names)
    num_parts = sum(each.rollout.workers + each.learner.ranks for each in policies)
    return chosen or max(1, (os.cpu_count() or 1) // num_parts)


def openmp(count: int) -> dict[str, Any]:
    """Threads that sleep while they wait: spinning ones take the core from the other part."""
    return {"env_vars": {"OMP_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}}
