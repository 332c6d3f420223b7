"""ONI's reward to the digit, where it lands, and that it waits for nobody."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.buffer import Suspicion
from cluster.config import JudgeSection, RewardModelSection, RewardSection, RunConfig
from cluster.errors import InfrastructureError
from cluster.types import ABSTAINED, Event, Turn, decode, encode
from cluster.types import Scores as Evidence
from rewards.base import Services
from rewards.learned.client import RewardModelClient
from rewards.learned.labeler import Labeller
from rewards.learned.labels import Label, MemoryLabels, pair_of
from rewards.learned.models import Ranking, Retrieval
from rewards.learned.oni import Oni, event_rewards
from rewards.learned.publishing import Announcement, MemoryBoard, write
from rewards.learned.trainer import RewardModelTrainer
from rewards.parsing.tokens import per_token
from rewards.worker import RewardWorker
from tests.rewards.groups import group, rollout
from tests.rewards.learned.judges import KeywordJudge

KEYWORD = JudgeSection(kind="keyword")
ONI = {"alpha_ext": 0.0, "alpha_int": 1.0, "beta": 3.0, "scale": 1.0}


def played(*events: Event, turns: int = 2):
    """Prompt of 2 tokens, then `turns` turns of the policy of 3 tokens, each answered by 2 of the environment."""
    made, spoken, at = rollout("x" * (5 * turns)), [], 2
    for _ in range(turns):
        spoken += [Turn("assistant", at, at + 3, "go"), Turn("user", at + 3, at + 5, "seen")]
        at += 5
    return replace(made, turns=(Turn("user", 0, 2, "start"), *spoken), events=events)


def of(*rollouts):
    return replace(group("x"), rollouts=rollouts)


class Setting:
    """Table, board and follower in one process."""

    def __init__(self, directory: Path, use: str = "retrieval", build=Retrieval) -> None:
        self.labels, self.board, self.directory = MemoryLabels(), MemoryBoard(), directory
        self.follower = RewardModelClient("oni", use, build, labels=self.labels, board=self.board)
        self.services = Services(reward_models={"oni": self.follower})

    def publish(self, number: int, model=None, **labels: float) -> None:
        if model is None:
            model = Retrieval()
            model.fit([*labels], np.array([*labels.values()]))
        path = self.directory / f"{number}.model"
        write(path, model.state(training=False))
        self.board.announce(Announcement("oni", f"retrieval.{number}", str(path), len(labels), float("nan")))

    def close(self) -> None:
        self.services.close()
        self.follower.close()


@pytest.fixture
def setting(tmp_path):
    made = Setting(tmp_path)
    yield made
    made.close()


def test_the_reward_of_a_repeated_caption_to_the_digit():
    counts = np.array([1.0, 2, 3, 10])
    found = event_rewards(np.ones(4), counts, np.zeros(4), **ONI)
    assert found == pytest.approx([1, 0.125, 0.0370370, 0.001], abs=5e-8)
    mixed = event_rewards(
        np.ones(1), np.array([2.0]), np.array([-0.01]), alpha_ext=0.1, alpha_int=0.4, beta=3.0, scale=1.0
    )
    assert mixed == pytest.approx([0.049], abs=1e-12)


def test_the_environment_s_reward_is_scaled_then_clipped():
    r_env = np.array([5.0, 500.0, -500.0])
    found = event_rewards(np.zeros(3), np.ones(3), r_env, alpha_ext=0.1, alpha_int=0.4, beta=3.0, scale=0.1)
    assert found == pytest.approx([0.05, 1.0, -1.0])
    assert np.isnan(event_rewards(np.array([np.nan]), np.ones(1), np.ones(1), **ONI)).all()


def test_rewards_land_on_the_last_token_of_the_policy_s_turn():
    one = played(Event("a", 0), Event("b", 1), Event("c", 1))
    values = per_token(one, np.array([1.0, 2.0, 4.0]))
    assert values.shape == one.tokens.shape
    assert np.flatnonzero(values).tolist() == [4, 9]
    assert values[[4, 9]].tolist() == [1.0, 6.0]
    assert one.loss_mask[[4, 9]].all()
    for turn in (2, -1):
        with pytest.raises(ValueError, match="had 2 turns"):
            per_token(played(Event("late", turn)), np.ones(1))


async def test_a_rollout_is_worth_the_sum_of_its_events(setting):
    setting.publish(1, A=1.0, B=0.0)
    reward = Oni(alpha_ext=0.1, alpha_int=0.4)
    await reward.prepare(setting.services)
    # Captions A, B, A, then a new episode: A. N is 1, 1, 2 and 1.
    first = played(Event("A", 0, 1), Event("B", 0, 1), Event("A", 1, 2, reward=-0.01))
    second = played(Event("A", 1, 1), Event("", 0, 1, reward=2.0))
    scores = await reward.score(of(first, second, played()), setting.services)
    assert scores.values == pytest.approx([0.4 + 0.049, 0.4 + 0.2, 0.0])
    assert scores.version == reward.version() == "retrieval.1"
    assert [t.sum() for t in scores.tokens] == pytest.approx(scores.values)
    assert scores.tokens[0][[4, 9]] == pytest.approx([0.4, 0.049])
    assert decode(encode(scores), Evidence).values == pytest.approx(scores.values)


async def test_an_unknown_caption_is_worth_nothing_and_is_asked_for(setting):
    reward = Oni(alpha_int=0.4)
    await reward.prepare(setting.services)
    scores = await reward.score(of(played(Event("gold", 0, 2)), played()), setting.services)
    assert scores.values.tolist() == [0.0, 0.0]
    assert scores.version == "retrieval.0"
    assert scores.provenance[0].note == "0 of 1 events known"
    assert list(setting.labels.take(9, 0)) == ["gold"]
    assert setting.follower.snapshot()["reward_model/oni_known_frac"] == 0.0


async def test_the_same_group_scored_after_the_label_came_has_its_reward(setting):
    reward, stored = Oni(alpha_int=0.4), of(played(Event("gold", 0, 2)))
    await reward.prepare(setting.services)
    assert (await reward.score(stored, setting.services)).values.tolist() == [0.0]
    setting.publish(1, gold=1.0)
    assert reward.version() == "retrieval.0"
    await reward.refresh(setting.services)
    assert reward.version() == "retrieval.1"
    assert (await reward.score(stored, setting.services)).values == pytest.approx([0.4 * 2.0**-3])


async def test_a_new_version_forgets_what_the_old_one_said(setting):
    for number, value in ((1, 1.0), (2, 0.0)):
        setting.publish(number, gold=value)
        await setting.follower.refresh()
        assert (await setting.follower.predict(["gold"])).values.tolist() == [value]


async def test_unknown_captions_can_leave_their_rollout_unknown(setting):
    setting.publish(1, gold=1.0)
    reward = Oni(missing_label=float("nan"))
    await reward.prepare(setting.services)
    known, unknown = played(Event("gold", 0)), played(Event("gold", 0), Event("fog", 1))
    scores = await reward.score(of(known, unknown), setting.services)
    assert scores.values[0] == pytest.approx(0.4)
    assert scores.state[1] == ABSTAINED
    assert np.isnan(scores.tokens[1][9])
    assert scores.tokens[1][4] == pytest.approx(0.4)


async def test_without_any_event_it_declines(setting):
    scores = await Oni().score(of(played(), played()), setting.services)
    assert (scores.state == ABSTAINED).all()


async def test_an_unknown_model_is_an_error_that_names_the_known(setting):
    with pytest.raises(ValueError, match=r"no reward model 'onni'. Did you mean 'oni'"):
        await Oni(model="onni").prepare(setting.services)


async def test_a_model_file_that_is_not_there_is_named(setting):
    setting.board.announce(Announcement("oni", "retrieval.3", "/nowhere/3.model", 0, 0.5))
    with pytest.raises(InfrastructureError, match=r"'oni' version retrieval\.3 cannot be read"):
        await Oni().prepare(setting.services)


async def test_a_ranking_asks_for_pairs_of_every_tenth_caption(tmp_path):
    setting = Setting(tmp_path, "ranking", lambda: Ranking(early_steps=1))
    told = [f"caption {n}" for n in range(100)]
    await setting.follower.ask(told)
    waiting = setting.labels.take(99, 0)
    assert len(waiting) == 9
    assert {c for key in waiting for c in pair_of(key)} <= set(told[9::10])
    assert all(a != b for a, b in map(pair_of, waiting))
    assert (await setting.follower.predict(["caption 1"])).version == "ranking.0"
    setting.close()


class OneGroup:
    """A buffer with one stored group, which `relabel` hands out again."""

    def __init__(self, stored) -> None:
        self.stored, self.due, self.scores, self.versions = stored, True, [], []

    def unscored(self, worker, limit, timeout_s):
        due, self.due = self.due, False
        return [self.stored] if due else []

    def answered(self, ids):
        return [{("oni", s.version) for s in self.scores} for _ in ids]

    def asks(self, worker, claim_id, rewards, *, now):
        pass

    def suspicions(self, ids):
        return [Suspicion() for _ in ids]

    def relabel(self, versions):
        self.versions.append(dict(versions))
        self.due = True

    def score(self, claim_id, scores):
        self.scores.append(scores["oni"])

    def emit(self, event, once=""): ...


async def test_from_caption_to_judge_to_new_version_to_the_same_group_scored_again(setting):
    judge = KeywordJudge()
    judge.hold.clear()
    buffer = OneGroup(of(played(Event("you find gold", 0, 2)), played(Event("you hit a wall", 0))))
    rewards = (RewardSection(use="oni", blocking=False, options={"alpha_int": 0.4}),)
    config = RunConfig(rewards=rewards, reward_models={"oni": RewardModelSection()}, judges={"judge": KEYWORD})
    worker = RewardWorker("reward-0", buffer=buffer, config=config, services=setting.services)
    section = RewardModelSection(use="retrieval", publish_every_s=0.01)
    trainer = RewardModelTrainer(
        "oni",
        section,
        labels=setting.labels,
        board=setting.board,
        directory=setting.directory / "oni",
        relabel=lambda version: buffer.relabel({"oni": version}),
    )
    labeller = Labeller(setting.labels, judge, name="keywords")
    running = [asyncio.create_task(part.run()) for part in (worker, trainer, labeller)]
    try:
        async with asyncio.timeout(20):
            while not buffer.scores:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not judge.hold.is_set(), "scored while the judge was silent"
            assert buffer.scores[0].values.tolist() == [0.0, 0.0]
            judge.hold.set()
            while len(buffer.scores) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        for part in (worker, trainer, labeller):
            await part.stop()
        await asyncio.gather(*running)
    assert buffer.scores[-1].values == pytest.approx([0.4 * 2.0**-3, 0.0])
    assert [s.version for s in buffer.scores] == ["retrieval.0", "retrieval.1"]
    assert buffer.versions == [{"oni": "retrieval.1"}], "who publishes says so, nobody else"
    assert setting.labels.look_up(["you find gold"]) == [Label(1.0, "keywords")]
    setting.follower.close()
