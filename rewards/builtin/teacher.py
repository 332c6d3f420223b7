"""On-policy distillation: how much likelier a teacher finds each token that the policy wrote (arXiv:2306.13649)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import PositiveFloat, model_validator

from cluster.types import Group, Rollout, Scores
from rewards.base import Reward, Services
from rewards.scorers.passages import chosen, passage_of, prompt_length, scores_of


class Teacher(Reward):
    """log π_T(y_t | x, y_<t) − log π(y_t | x, y_<t) of every token that the policy chose: [T] nats, 0 elsewhere.

    In expectation over the policy's own tokens this is −KL(π ‖ π_T) at each place: on-policy distillation in its
    reverse-KL, sampled-token form (GKD, arXiv:2306.13649, with λ = 1; TRL's distillation trainer). The advantage
    `token_rewards` takes each token's reward as its advantage, without a baseline and without what comes later. The
    score of a rollout is the sum over its tokens. The teacher is a scorer, reads the policy's tokens and so must have
    its tokenizer. Several teachers are averaged, weighted by the task's source. A teacher that is away leaves the score
    unknown.
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer",)
    scorer: str | tuple[str, ...] = "teacher"
    """Sections of the teachers, `[scorers.NAME]`, whose `model` is a directory or an alias such as `RUN@latest`."""
    weights: dict[str, dict[str, float]] = {}
    """Weight of a teacher by the source of tasks, `weights.NAME.SOURCE`; 0 for a source that is not listed. A teacher
    without weights counts 1 for every source. The group is unscored where all teachers weigh 0."""
    student: str = ""
    """The scorer that reads π, of model `policy`; by default π is what sampled the rollout, at temperature 1."""
    bound: PositiveFloat | None = None
    """Log-ratios are clipped to ± this many nats; by default none is."""

    @model_validator(mode="after")
    def _consistent(self) -> Teacher:
        if unknown := sorted(self.weights.keys() - set(self._teachers)):
            raise ValueError(f"weights.{unknown[0]}: the teachers are {', '.join(self._teachers)}")
        for name, by_source in self.weights.items():
            for source, weight in by_source.items():
                if not (np.isfinite(weight) and weight >= 0):
                    raise ValueError(f"weights.{name}.{source} = {weight} is not a finite number of at least 0")
        return self

    @property
    def _teachers(self) -> tuple[str, ...]:
        return (self.scorer,) if isinstance(self.scorer, str) else self.scorer

    def scorers(self) -> Sequence[str]:
        return (*self._teachers, *filter(None, (self.student,)))

    async def prepare(self, services: Services) -> None:
        for name in self.scorers():
            services.scorer(name)

    async def score(self, group: Group, services: Services) -> Scores:
        weights = {name: self._weight(name, group.task.source) for name in self._teachers}
        asked = [name for name, weight in weights.items() if weight > 0]
        if not asked:
            return Scores.abstained(len(group), f"no teacher has a weight for tasks of source '{group.task.source}'")
        passages = [passage_of(r) for r in group.rollouts]
        readings = {name: await services.scorer(name).read(passages) for name in asked}
        ours = [r.logprobs for r in await services.scorer(self.student).read(passages)] if self.student else None
        tokens = []
        for i, rollout in enumerate(group.rollouts):
            base = _sampled(rollout) if ours is None else ours[i]
            ratio = teacher_ratio({n: r[i].logprobs for n, r in readings.items()}, base, weights)
            if self.bound is not None:
                ratio = np.clip(ratio, -self.bound, self.bound)
            tokens.append(np.zeros(len(rollout.tokens)))
            tokens[i][prompt_length(rollout) :] = np.where(chosen(rollout), ratio, 0.0)
        values = [t.sum() if r.loss_mask.any() else np.nan for t, r in zip(tokens, group.rollouts, strict=True)]
        found = scores_of(np.array(values), "+".join(asked), [one for name in asked for one in readings[name]])
        return replace(found, tokens=tuple(tokens))

    def _weight(self, name: str, source: str) -> float:
        return self.weights[name].get(source, 0.0) if name in self.weights else 1.0


def _sampled(rollout: Rollout) -> Float[np.ndarray, " N"]:
    """Log-probs that the policy's sampling gave, behind the prompt. Raises ValueError at a temperature other than 1."""
    if rollout.temperature != 1:
        raise ValueError(
            f"the rollout was sampled at temperature {rollout.temperature:g}, and a teacher reads at 1: name a scorer "
            "of model 'policy' as options.student."
        )
    return rollout.logprobs[prompt_length(rollout) :].astype(np.float64)


def teacher_ratio(
    teachers: Mapping[str, Float[np.ndarray, " N"]], policy: Float[np.ndarray, " N"], weights: Mapping[str, float]
) -> Float[np.ndarray, " N"]:
    """Σ_k w_k (log π_k − log π) / Σ_k w_k over the teachers given, nats; their weights are positive."""
    total = sum(weights[name] for name in teachers)
    return sum((weights[n] * (logprobs - policy) for n, logprobs in teachers.items()), np.zeros(len(policy))) / total
