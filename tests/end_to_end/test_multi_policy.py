"""CoMAS from claim to cut in one process, on a real buffer: who spoke, what it was worth, who is trained on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from actors.chat import Chat
from actors.environments.comas import CoMas
from actors.rollout import INITIAL, RolloutWorker
from cluster.buffer import Buffer
from cluster.config import RunConfig, parse
from cluster.driver.preflight import limits
from cluster.types import AssembledBatch, Publication, Task, WeightFile
from learner.advantages.estimators import ReinforcePlusPlus
from learner.advantages.multi_policy import owned
from learner.pack import pack
from rewards.aggregation.mixer import Mixer
from rewards.builtin.comas import interaction_rewards, read_score
from rewards.worker import RewardWorker
from tests.fakes import FakeEngine
from tests.learner.runs import assembler
from tests.models import random_llama

GROUPS = 4
RECIPE = {
    "rollout": {"max_tokens": 1, "environment": {"use": "comas"}},
    "engine": {"max_model_len": 256},
    "rewards": [{"use": "comas", "options": {"tag": ""}}],
    "reward_workers": {"min_scored_rollouts": 1},
    "learner": {"groups_per_step": GROUPS, "max_staleness": 0, "drop_zero_variance": False, "max_refills": 0},
    "policies": {"b": {}},
}
"""Answers of one character; a score is a lone digit."""


def workers(model: Path, buffer: Buffer, settings: RunConfig) -> tuple[RolloutWorker, RolloutWorker]:
    """The one that claims, and the other policy's."""
    from transformers import AutoTokenizer

    chat = Chat(AutoTokenizer.from_pretrained(model))

    async def fetch(publication: Publication) -> str:
        return str(model / "model.safetensors")

    def make(seed: int, policy: str, **options) -> RolloutWorker:
        own = settings.of_policy(policy).model_copy(update={"seed": seed})
        engine = FakeEngine(model, own, stop_tokens=chat.stop_tokens, version=INITIAL)
        environment = CoMas(solve="{question}", evaluate="{solution}?", score="{solution}{evaluation}=")
        return RolloutWorker(
            f"{policy}-0", policy=policy, engine=engine, chat=chat, environment=environment, buffer=buffer,
            task_at=lambda i: Task.of(str(i), f"{i}+1="), config=own, fetch=fetch, **options,
        )  # fmt: skip

    other = make(1, "b", claims=False)
    return make(0, "policy", others={"b": other.play}), other


async def step(buffer: Buffer, model: Path) -> tuple[AssembledBatch, int]:
    """The first cut of such a run, and its epoch."""
    settings = parse(RECIPE)
    buffer.configure(limits(settings))
    epoch = buffer.resume("policy", None)
    for policy in settings.policy_names:
        buffer.announce(Publication(policy, epoch, 0, WeightFile("weights")))
    first, other = workers(model, buffer, settings)
    rewards = RewardWorker("reward-0", buffer=buffer, config=settings)
    working = [asyncio.create_task(worker.run()) for worker in (first, other, rewards)]
    mix = Mixer(settings.rewards, settings.reward_names, settings.reward_workers.min_scored_rollouts).of_step
    made = await asyncio.to_thread(
        lambda: assembler(buffer, epoch, mix, ReinforcePlusPlus(), policies=settings.policy_names).assemble(
            0, settings.learner, lambda: any(task.done() for task in working)
        )
    )
    for worker in (first, other, rewards):
        await worker.stop()
    await asyncio.gather(*working)
    assert made is not None
    return made, epoch


@pytest.mark.timeout(60)
async def test_what_is_said_in_a_meeting_is_scored_and_each_learner_takes_its_own(buffer: Buffer, tmp_path: Path):
    made, epoch = await step(buffer, random_llama(tmp_path / "model", tied=True))
    assert len(made.groups) == GROUPS
    for group, rewards in zip(made.groups, made.record.rewards, strict=True):
        assert [r.variant for r in group.rollouts] == ["solution", "evaluation", "score"] * 4
        assert {r.policy for r in group.rollouts} <= {"policy", "b"}
        for first in range(0, 12, 3):
            said = read_score(group.rollouts[first + 2].text, "")
            assert rewards[first : first + 3] == pytest.approx(interaction_rewards(said), nan_ok=True)
    texts = 0
    for policy in ("policy", "b"):
        groups, record = owned(made.groups, made.record, policy)
        assert {r.policy for group in groups for r in group.rollouts} == {policy}
        known = np.concatenate([a for of_group in record.advantages for a in of_group])
        known = known[np.isfinite(known)]
        assert known.mean() == pytest.approx(0, abs=1e-5), "normalised over a policy's own rollouts"
        batch = pack(groups, record, parse(RECIPE).learner, epoch=epoch)
        assert batch.num_rollouts == len(known) > 0
        texts += sum(len(group) for group in groups)
    assert texts == 12 * GROUPS, "every rollout is somebody's, once"
    assert made.record.metrics["reward/of_b_mean"] < 0, "few scores can be read"
    assert buffer.summary("policy")["groups_lost"] == 0
