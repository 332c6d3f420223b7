"""What a search may ask outside of its engine: judges, reward models and scorers, through the rewards that use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.environments.search import Critic
from cluster.config import RewardSection
from cluster.types import Group, Message
from cluster.workers.judge import Judges
from cluster.workers.scorer import Scorers
from rewards.asking import ask
from rewards.base import Reward, Services
from rewards.registry import build_reward

if TYPE_CHECKING:
    from actors.chat import Chat
    from cluster.workers.context import RunContext


class RewardCritics:
    """Rewards as critics of one rollout worker. A reward is built and prepared when it is first asked."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._rewards: dict[str, Reward] = {}
        self._building = asyncio.Lock()

    async def score(self, critic: Critic, group: Group) -> np.ndarray:
        """[G] float64: what the reward makes of a group's rollouts, NaN where it fails or abstains."""
        reward = await self._reward(critic)
        await reward.refresh(self._services)
        scores, _ = await ask(reward, group, self._services, critic.timeout_s, critic.use)
        return scores.values

    async def complete(
        self, judge: str, messages: Sequence[Message], n: int, max_tokens: int, temperature: float
    ) -> list[str | None]:
        answers = await self._services.complete(judge, messages, n, max_tokens=max_tokens, temperature=temperature)
        return [answer.text for answer in answers]

    async def _reward(self, critic: Critic) -> Reward:
        key = critic.model_dump_json()
        async with self._building:
            if key not in self._rewards:
                section = RewardSection(use=critic.use, options=critic.options, timeout_s=critic.timeout_s)
                reward = build_reward(section, "rollout.environment.options")
                await reward.prepare(self._services)
                self._rewards[key] = reward
        return self._rewards[key]


def critics_of(context: RunContext, chat: Chat) -> tuple[RewardCritics, Callable[[], list[asyncio.Task[None]]]]:
    """Return the critics of a run, and the function that starts to follow the run's own judges and scorers."""
    from rewards.learned.factory import followers

    judges, scorers = Judges(context), Scorers(context)
    services = Services(
        judges=judges.pools,
        reward_models=followers(context.config, context.url, context.run_id, context.model_dir),
        scorers=scorers.pools,
        text=chat.text,
        encode=chat.passage,
    )
    return RewardCritics(services), lambda: [*judges.follow(), *scorers.follow()]
