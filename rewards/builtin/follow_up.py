"""How likely a user's praise is after a response, beside a user's complaint (FLR, arXiv:2409.13948)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from cluster.thoughts import spoken_by
from cluster.types import Group, Message, Scores
from rewards.base import Reward, Services
from rewards.scorers.passages import scores_of

FOLLOW_UPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "understanding": (
        ("Yes, that is what I meant.", "You understood me well."),
        ("No, that is not what I meant.", "You misunderstood me."),
    ),
    "relevance": (
        ("That is just what I asked about.", "Good, you stayed on the topic."),
        ("That is not what I asked about.", "Why do you change the topic?"),
    ),
    "correctness": (
        ("Right, I checked it.", "Thanks, your answer is correct."),
        ("Wrong, I checked it.", "Sorry, your answer is not correct."),
    ),
    "engagingness": (
        ("How interesting, tell me more.", "I enjoy talking to you."),
        ("How boring, let us stop.", "I do not enjoy talking to you."),
    ),
    "informativeness": (
        ("I learned a lot, thank you.", "That tells me all I need."),
        ("I learned nothing new.", "That tells me too little."),
    ),
    "instructions": (
        ("Perfect, you did what I told you.", "You kept to my instructions."),
        ("You did not do what I told you.", "You ignored my instructions."),
    ),
}
"""By dimension, which are the paper's: what a satisfied user says next, and a dissatisfied one, in words of ours."""


class FollowUp(Reward):
    """Mean over dimensions of [mean over praise f of ℓ(f) − mean over complaints of ℓ(f)], nats per token.

    ℓ(f) = mean_t log p(f_t | x, y, f_<t) is how likely the scorer finds the user's next message f behind the prompt x
    and the response y, thoughts left out: follow-up likelihood (FLR, arXiv:2409.13948). What makes a follow-up likely
    whatever stands before it cancels. Shorter lists of ours replace the paper's 10 and 10 utterances a dimension; its
    rule of combination is not documented and this one is ours. The released script reads raw logits at the first
    place of a follow-up, which is not reproduced. Praise that is likely because a response is long or flattering is a
    known weakness: watch the correlation with length.
    """

    scope: ClassVar = "rollout"
    services: ClassVar = ("scorer", "encode")
    scorer: str = "scorer"
    """Its section's name, `[scorers.NAME]`; the paper's is a frozen chat model, `initial`."""
    follow_ups: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = Field(default=FOLLOW_UPS, min_length=1)
    """By dimension: what a satisfied user says next, and what a dissatisfied one says."""

    @model_validator(mode="after")
    def _consistent(self) -> FollowUp:
        for name, sides in self.follow_ups.items():
            if not all(sides) or not all(text.strip() for side in sides for text in side):
                raise ValueError(f"follow_ups.{name} needs at least one message on each side, and none that is empty")
        return self

    async def prepare(self, services: Services) -> None:
        services.scorer(self.scorer)

    async def score(self, group: Group, services: Services) -> Scores:
        said = list(dict.fromkeys(text for sides in self.follow_ups.values() for side in sides for text in side))
        conversations = [
            (*group.task.variants[r.variant], Message("assistant", spoken_by(r)), Message("user", text))
            for r in group.rollouts
            for text in said
        ]
        readings = await services.scorer(self.scorer).read(await services.encode(conversations))
        likelihoods = np.array([reading.logprobs.mean() for reading in readings]).reshape(len(group), len(said))
        values = [follow_up_reward(dict(zip(said, row, strict=True)), self.follow_ups) for row in likelihoods]
        return scores_of(np.array(values), self.scorer, readings)


def follow_up_reward(
    likelihoods: Mapping[str, float], follow_ups: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> float:
    """Mean over dimensions of praise minus complaints, from the mean log-prob of each follow-up in nats."""
    sides = [[np.mean([likelihoods[t] for t in side]) for side in both] for both in follow_ups.values()]
    return float(np.mean([praise - complaint for praise, complaint in sides]))
