"""`[policies.NAME]`: policies beside the one that the rest of a recipe describes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, ValidationError, field_serializer, model_validator

from cluster.config.base import Section
from cluster.config.engines import EngineSection, ModelSection
from cluster.config.learner import LearnerSection

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig

S = TypeVar("S", bound=Section)

POLICY = "policy"
"""The one policy that every recipe has."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
TOGETHER = frozenset({
    "steps", "groups_per_step", "max_staleness", "when_late", "max_refills", "drop_zero_variance", "drop_truncated",
    "advantage", "turn_discount", "value",
})  # fmt: skip
"""Keys of `[learner]` that decide what a step is: one batch is assembled for all policies."""


class PolicySection(Section):
    """`[policies.NAME]`: one more policy, with engines, a learner and published weights of its own. Every group then
    holds rollouts of all policies, its rewards see them all, and each learner trains on its own policy's, compared with
    each other alone. All take their steps together. What is left out here is as in the recipe's own sections."""

    workers: int | None = Field(default=None, ge=1)
    """Its engines; by default as many as `rollout.workers`."""
    model: ModelSection = ModelSection()
    """Keys of `[model]` that differ."""
    engine: EngineSection = EngineSection()
    """Keys of `[engine]` that differ."""
    learner: LearnerSection = LearnerSection()
    """Keys of `[learner]` that differ: optimiser, loss, ranks, precision."""

    @field_serializer("model", "engine", "learner")
    def _only_what_is_said(self, section: Section) -> dict[str, Any]:
        # Read again, a default that nobody wrote would stand above the recipe's own section.
        return section.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    @model_validator(mode="after")
    def _steps_with_the_others(self) -> PolicySection:
        if own := sorted(TOGETHER & self.learner.model_fields_set):
            raise ValueError(
                f"learner.{own[0]} is the same for all policies, which are trained on the same groups in the same "
                f"steps. Set learner.{own[0]} for all of them."
            )
        return self


def check_policies(config: RunConfig) -> None:
    """Raises ValueError for policies that no run can have."""
    for name in config.policies:
        if name == POLICY or not NAME.fullmatch(name):
            raise ValueError(
                f"policies.{name}: a name has lower-case letters, digits, dashes and underscores, and '{POLICY}' is "
                "the one that the recipe's own sections describe. Give it another name."
            )
        of_policy(config, name)
    if config.policies and config.placement.layout == "colocated":
        raise ValueError(
            "placement.layout = 'colocated' shares the places of one learner with its engines; beside [policies.…] use "
            "'any' or 'separated'."
        )
    if config.policies and config.selectors:
        raise ValueError(
            "[[selectors]] beside [policies.…]: a selector would compare rollouts of different policies. Remove one."
        )


def of_policy(config: RunConfig, name: str) -> RunConfig:
    """The recipe as the policy `name` has it, in which it is the only one: its model, engine, learner and workers.

    Raises ValueError where sections do not go together.
    """
    if name == POLICY:
        return config.model_copy(update={"policies": {}})
    section = config.policies[name]
    workers = section.workers or config.rollout.workers
    try:
        return config.model_copy(
            update={
                "model": _over(config.model, section.model),
                "engine": _over(config.engine, section.engine),
                "learner": _over(config.learner, section.learner),
                "rollout": config.rollout.model_copy(update={"workers": workers}),
                "policies": {},
            }
        )
    except ValidationError as error:
        raise ValueError(f"policies.{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _over(base: S, top: S) -> S:
    """`base` with the keys that `top` sets; another plug-in or model does not inherit options."""
    said = top.model_fields_set
    update = {key: getattr(top, key) for key in said}
    for key, value in update.items():
        below = getattr(base, key)
        if isinstance(value, Section) and isinstance(below, type(value)):
            update[key] = _over(below, value)
    if said & {"use", "path"} and "options" in type(base).model_fields and "options" not in said:
        update["options"] = {}
    return type(base).model_validate(base.model_copy(update=update).model_dump(exclude_unset=True))
