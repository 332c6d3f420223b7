"""Policy and reward model learn together: right answers against spoilt ones (Cooper, arXiv:2508.05613)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from cluster.config import RewardModelSection, RewardSection
from cluster.thoughts import spoken_by
from cluster.types import Claim, Group, Message, Provenance, Rollout, Scores, Task
from rewards.aggregation.shaping.par import sigmoid
from rewards.base import Reward, Services
from rewards.judges.backends.keyword import SOLUTION, SPOIL
from rewards.learned.base import RewardModelReward, Versioned
from rewards.learned.caption_labels import Complete, replies_of
from rewards.learned.labels import Against
from rewards.learned.response_labels import read, written
from rewards.learned.reward_model import scores_of
from rewards.registry import build_reward

TEMPERATURE = 0.7
EXTRA_TOKENS = 500
"""An answer may be as long as what it spoils, in words, and so much more."""


class Cooper(RewardModelReward):
    """σ(logit) [G], in (0, 1), of a reward model that sees the reference answer and is never done learning.

    Of every group the first rollout that `rule` gives exactly 1 is a positive. An assistant, the judge of the model's
    section, rewrites it into a plausible wrong solution; if the rule agrees that it is wrong the two are a pair, at
    most `max_attempts` tries (three in the paper), else the group has none. The model (`bradley_terry`) minimises
    −log σ(s⁺ − s⁻) over all pairs so far: the paper trains on those of the step alone. Errors of the rule that miss a
    right answer do no harm, only positives are taken from it; those that pass a wrong one do.

    The paper's model has first learnt from single answers what is 1 and what 0. Ours learns from pairs, which leave it
    open, and σ is then flat over whole groups: give it `centring = 0.01`. Mistakes must be of many kinds, or the policy
    makes the others. docs/loophole.md has what was measured of both.
    """

    model: str = "cooper"
    """The section `[reward_models.NAME]` of the reward model."""
    rule: str = "exact"
    """The reward that verifies: one by name, or `package.module:Class`."""
    rule_options: dict[str, Any] = {}
    """Options of the reward that `rule` names."""
    _built: Reward | None = PrivateAttr(None)

    def declines(self, task: Task) -> str:
        return "the task has no reference answer" if task.answer is None else ""

    async def score(self, group: Group, services: Services) -> Scores:
        if group.task.answer is None:
            return Scores.abstained(len(group), self.declines(group.task))
        texts = [written(group.task, spoken_by(rollout), reference=True) for rollout in group.rollouts]
        follower = services.reward_model(self.model)
        verified = (await self._rule().score(group, services)).values
        positive = first_right(verified)
        await follower.submit([] if positive is None else [texts[positive]], group=list(dict.fromkeys(texts)))
        logits, version = await scores_of(follower, texts)
        return Scores.of(sigmoid(logits), Provenance(model=self.model), version=version)

    def evaluates(self) -> bool:
        return self._rule().evaluates()

    async def prepare(self, services: Services) -> None:
        await super().prepare(services)
        await self._rule().prepare(services)

    def labels_per_group(self, group_size: int) -> int | None:
        return 1

    def labels_by(self, section: RewardModelSection, complete: Complete | None, *, compares: bool) -> Versioned:
        return Spoiler(complete, self._rule(), judge=section.judge)

    def _rule(self) -> Reward:
        if self._built is None:
            self._built = build_reward(RewardSection(use=self.rule, options=self.rule_options), "rule")
        return self._built


def first_right(verified: np.ndarray) -> int | None:
    """Place of the first rollout that is exactly right (1); None: the group has no positive and is left out."""
    right = np.flatnonzero(verified == 1)
    return int(right[0]) if len(right) else None


class Spoiler:
    """Makes a wrong solution of every right one; implements `labeller.Judge`."""

    def __init__(self, complete: Complete | None, rule: Reward, *, judge: str) -> None:
        self._complete, self._rule, self._services = complete, rule, Services(threads=1)
        shown = [SPOIL, type(rule).__name__, rule.model_dump(mode="json"), judge]
        self.version = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:12]

    async def __call__(self, keys: Sequence[str], /) -> list[Against | None] | None:
        assert self._complete is not None, "a spoiler without `complete` cannot be asked"
        asked = [self.messages(key) for key in keys]
        longest = max(len(read(key).completion.split()) for key in keys) + EXTRA_TOKENS
        replies = await replies_of(self._complete, asked, max_tokens=longest, temperature=TEMPERATURE)
        if replies is None:
            return None
        return await asyncio.gather(*(self._checked(key, reply) for key, reply in zip(keys, replies, strict=True)))

    def messages(self, key: str) -> tuple[Message, ...]:
        given = read(key)
        user = f"Question:\n{given.question}{SOLUTION}{given.completion}"
        return Message("system", SPOIL), Message("user", user)

    async def _checked(self, key: str, reply: str | None) -> Against | None:
        """The pair's worse half, if the rule finds it wrong; an unknown verdict is no pair."""
        if reply is None:
            return None
        given = read(key)
        task = Task.of("spoilt", given.question, given.reference)
        verdict = (await self._rule.score(_group(task, reply), self._services)).values[0]
        return Against(written(task, reply, reference=True)) if np.isfinite(verdict) and verdict != 1 else None


def _group(task: Task, text: str) -> Group:
    """One text as a rule sees it."""
    empty = np.zeros(0)
    alone = Rollout(empty.astype(np.int32), empty.astype(bool), empty.astype(np.float32), text, (), (), "stop")
    return Group(Claim("", "", 0, 0, 0, 0, ""), task, (alone,))
