"""Intrinsic reward of what an environment notices (ONI, arXiv:2410.23022)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from pydantic import Field, PositiveFloat

from cluster.types import ABSTAINED, SCORED, Group, Provenance, Scores
from rewards.base import Services
from rewards.learned.base import RewardModelReward
from rewards.parsing.tokens import per_token

MAX_REWARD = 10.0
"""The environment's scaled reward is clipped to this on both sides."""


def event_rewards(
    r_hat: Float[np.ndarray, " E"],
    counts: Float[np.ndarray, " E"],
    r_env: Float[np.ndarray, " E"],
    *,
    alpha_ext: float,
    alpha_int: float,
    beta: float,
    scale: float,
) -> Float[np.ndarray, " E"]:
    """α_ext·clip(s·r_env, ±10) + α_int·r̂·N^(−β), N how often the caption was seen in its episode, this time included.

    NaN where r̂ is.
    """
    return alpha_ext * np.clip(scale * r_env, -MAX_REWARD, MAX_REWARD) + alpha_int * r_hat * counts ** (-beta)


class Oni(RewardModelReward):
    """Sum of `event_rewards` over a rollout; per token, what the policy's turn has caused is at the turn's end.

    It asks for labels of the captions that it sees and waits for none: r̂ is that of the version published last. An
    event without text is the environment's reward alone.
    """

    model: str = "oni"
    """The section `[reward_models.NAME]` that r̂ comes from."""
    alpha_ext: float = 0.1
    """0.1 for a dense score, 10 for a sparse task, 0 without a reward of the environment (ONI's code)."""
    alpha_int: float = 0.4
    """Weight of the intrinsic reward r̂ beside the environment's."""
    beta: float = Field(default=3.0, ge=0)
    """With 3 a caption is worth an eighth when it comes again, also where it rightly comes again."""
    scale: PositiveFloat = 1.0
    """Factor of the environment's reward, before it is clipped to ±10 per event."""
    missing_label: float = 0.0
    """r̂ of a caption that the model does not know (ONI: 0); with `nan` its rollout is unknown."""

    async def score(self, group: Group, services: Services) -> Scores:
        events = [event for rollout in group.rollouts for event in rollout.events]
        if not events:
            return Scores.abstained(len(group), "no rollout has events: the environment notices nothing")
        follower = services.reward_model(self.model)
        captions = [event.text for event in events if event.text]
        await follower.ask(captions)
        predicted = await follower.predict(captions)
        r_hat = np.zeros(len(events))
        r_hat[[bool(event.text) for event in events]] = predicted.values
        rewards = event_rewards(
            np.where(np.isnan(r_hat), self.missing_label, r_hat),
            np.array([float(event.count) for event in events]),
            np.array([event.reward for event in events]),
            alpha_ext=self.alpha_ext,
            alpha_int=self.alpha_int,
            beta=self.beta,
            scale=self.scale,
        )
        ends = np.cumsum([len(rollout.events) for rollout in group.rollouts])[:-1]
        tokens = tuple(map(per_token, group.rollouts, np.split(rewards, ends)))
        values = np.array([t.sum() for t in tokens])
        state = np.where(np.isnan(values), ABSTAINED, SCORED).astype(np.uint8)
        provenance = tuple(
            Provenance(model=self.model, note=f"{np.isfinite(part).sum()} of {len(part)} events known")
            for part in np.split(r_hat, ends)
        )
        return Scores(values, state, provenance, predicted.version, tokens)
