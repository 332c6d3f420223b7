"""Reward models of steps that learn from outcomes: the catalogue's numbers, and what they find in planted episodes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import RewardModelSection, parse
from cluster.errors import ConfigError, PluginError
from cluster.plugins import build
from cluster.types import ABSTAINED, Event, Turn
from rewards.base import Services
from rewards.learned.client import RewardModelClient
from rewards.learned.episodes import NAMED, STEP, episodes_of
from rewards.learned.factory import judge_of
from rewards.learned.labels import BETWEEN, MemoryLabels
from rewards.learned.models import MODELS
from rewards.learned.publishing import MemoryBoard
from rewards.learned.step_models import (
    decomposition_loss,
    gradient_penalty,
    hashed_words,
    imitation_reward,
    increments,
    outcome_agreement,
    progress_loss,
    split,
)
from rewards.learned.step_rewards import LaRe, PerceptualReward, SpaRl, checked_factors, fused, step_factors
from rewards.learned.trainer import RewardModelTrainer
from rewards.registry import build_reward
from tests.rewards.groups import group, rollout

STEP_REWARDS = {
    "spa_rl": "progress",
    "lare": "return_decomposition",
    "imitation": "imitation",
    "perceptual": "segments",
}


# ── the catalogue's numbers ─────────────────────────────────────────────────────────────────────────────────────


def test_contributions_add_up_to_the_outcome():
    loss = progress_loss([torch.tensor([0.2, 0.5, 0.1])], torch.tensor([1.0]))
    assert float(loss) == pytest.approx(0.04, abs=1e-6)
    two = progress_loss([torch.tensor([0.2, 0.5, 0.1]), torch.tensor([2.0])], torch.tensor([1.0, 0.0]))
    assert float(two) == pytest.approx((0.04 + 4) / 2, abs=1e-6)


def test_contribution_and_grounding_are_fused():
    found = fused(np.array([0.2, 0.5, 0.1]), np.array([1.0, 0.0, 1.0]), 1.0, 0.5)
    np.testing.assert_allclose(found, [0.7, 0.5, 0.6])


def test_a_return_is_decomposed_without_bias():
    sampled, outcome = torch.tensor([1.0, 3.0]), torch.tensor(8.0)
    assert float(decomposition_loss(sampled, outcome, 4)) == pytest.approx(-0.5, abs=1e-6)
    assert float(decomposition_loss(sampled, outcome, 2)) == pytest.approx((2.0 - 4.0) ** 2, abs=1e-6)
    steps = torch.tensor([0.3, 1.0, -2.0, 0.7, 0.1])
    picks = [steps[[i, j]] for i in range(5) for j in range(5) if i != j]
    mean = np.mean([float(decomposition_loss(p, torch.tensor(2.0), 5)) for p in picks])
    assert mean == pytest.approx((float(steps.sum()) - 2.0) ** 2 / 25, abs=1e-6)


def test_the_penalty_of_a_linear_discriminator_is_of_its_norm():
    points = torch.randn(7, 2)

    def penalty(weights, **how):
        w = torch.tensor(weights)
        return float(gradient_penalty(lambda x: x @ w, points, **how))

    assert penalty([3.0, 4.0]) == pytest.approx(160, abs=1e-4)
    assert penalty([3.0, 4.0], one_sided=True) == pytest.approx(160, abs=1e-4)
    assert penalty([0.3, 0.4]) == pytest.approx(2.5, abs=1e-5)
    assert penalty([0.3, 0.4], one_sided=True) == 0


def test_a_discriminator_that_does_not_know_pays_ln_2():
    assert float(imitation_reward(torch.zeros(1))) == pytest.approx(0.6931472, abs=1e-6)


def test_a_sequence_is_split_where_it_changes():
    rows = np.array([0.0, 0.0, 0.0, 10.0, 10.0])[:, None]
    assert split(rows, 2) == ([0, 3, 5], 0.0)
    assert split(rows, 1)[1] == pytest.approx(120)
    assert split(rows, 2, least=3 - 1) == ([0, 3, 5], 0.0)
    with pytest.raises(ValueError, match="2 segments of at least 3"):
        split(rows, 2, least=3)


def test_a_substep_pays_once():
    np.testing.assert_allclose(increments(np.array([0.25, 0.25, 0.75, 0.5, 1.0])), [0.25, 0, 0.5, 0, 0.25])
    assert increments(np.empty(0)).size == 0


@pytest.mark.parametrize(
    "found",
    [
        [np.zeros(3)],
        [np.zeros((2, 1))],
        [],
        [np.full((3, 1), np.nan)],
        np.zeros((3, 1)),
        "no",
        [np.zeros((3, 1)), None],
    ],
)
def test_factors_of_another_form_are_refused(found):
    with pytest.raises((PluginError, TypeError)):
        checked_factors(found, 3)
    assert checked_factors([np.zeros((3, 1)), np.ones((3, 1))], 3).shape == (3, 2)


def test_agreement_is_about_order_and_knows_when_it_cannot_tell():
    assert outcome_agreement(np.array([0.1, 0.9]), np.array([0.0, 1.0])) == 1
    assert outcome_agreement(np.array([0.5, 0.5, 0.2]), np.array([0.0, 1.0, 1.0])) == 0.25
    assert np.isnan(outcome_agreement(np.array([0.1, 0.9]), np.array([1.0, 1.0])))


# ── episodes ────────────────────────────────────────────────────────────────────────────────────────────────────


def turns(*texts: str, outcome: float = 1.0, events=(), **fields):
    """A rollout whose turns are texts `seen>done`, each of two tokens."""
    made = []
    for k, text in enumerate(texts):
        seen, _, done = text.partition(">")
        made += [Turn("user", 4 * k, 4 * k + 2, seen), Turn("assistant", 4 * k + 2, 4 * k + 4, done)]
    one = rollout("", num_tokens=4 * len(texts) - 2)
    return replace(one, turns=tuple(made), text="\n".join(texts), reward=outcome, events=tuple(events), **fields)


def of(*rollouts):
    return replace(group("x"), rollouts=tuple(rollouts))


def test_the_steps_of_a_chain_are_one_episode():
    chain = [turns("a>b", chained=True, episode=0), turns("c>d", "e>f", chained=True, episode=0)]
    one, two = episodes_of(of(*chain, turns("a>b", "c>d", "e>f")))
    assert one.key == two.key == STEP.join(("a\n> b", "c\n> d", "e\n> f"))
    assert one.prefixes[1] == STEP.join(("a\n> b", "c\n> d"))
    assert [(s.rollout, s.end) for s in one.steps] == [(0, 3), (1, 3), (1, 7)]
    assert [(s.rollout, s.end) for s in two.steps] == [(2, 3), (2, 7), (2, 11)]


def test_a_separator_in_a_text_separates_nothing():
    (episode,) = episodes_of(of(turns(f"a{STEP}{BETWEEN}>b{STEP}")))
    assert STEP not in episode.key
    assert BETWEEN not in episode.key


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD, BAD = "door>open it", "door>wait"


def planted(rng):
    """An episode that succeeds exactly where the door was opened, after steps that do not matter."""
    good = rng.random() < 0.5
    steps = [
        f"hall {rng.integers(3)}>go {rng.integers(9)}",
        GOOD if good else BAD,
        f"room {rng.integers(3)}>look" if good else BAD,
    ]
    events = [Event("reached door", 1)] if good else []
    return turns(*steps, outcome=float(good), events=events)


class Setting:
    """Table, board, trainer and client of one model in one process."""

    def __init__(self, directory, use: str, **options) -> None:
        self.labels, self.board = MemoryLabels(version="told"), MemoryBoard()
        section = RewardModelSection(
            use=use, judge="", min_held_out=5, held_out_frac=0.3, publish_every_s=0.001, options=options
        )
        self.trainer = RewardModelTrainer(
            use, section, labels=self.labels, board=self.board, directory=directory, relabel=lambda _: None
        )
        self.client = RewardModelClient(
            use, use, lambda: build(MODELS, use, options, "m"), labels=self.labels, board=self.board
        )
        self.services = Services(reward_models={use: self.client})


@pytest.mark.parametrize("name", STEP_REWARDS)
async def test_a_step_reward_is_learnt_from_outcomes_alone(name, tmp_path):
    use = STEP_REWARDS[name]
    options = {"segments": {"segments": 3}}.get(use, {"early_steps": 12})
    setting = Setting(tmp_path, use, **options)
    reward, rng = build_reward(parse({"rewards": [{"use": name}]}).rewards[0], "rewards[0]"), np.random.default_rng(0)
    groups = [replace(of(*(planted(rng) for _ in range(8))), claim=group(seq=seq).claim) for seq in range(12)]
    for one in groups:  # nothing is published yet: the score fails, the outcomes are told
        with pytest.raises(Exception, match="no version of the reward model"):
            await reward.score(one, setting.services)
    news = setting.labels.news("0", 1000, 0.0)
    assert len(news) > 30
    assert {n.label.value for n in news} == {0.0, 1.0}
    for _ in range(1 if use == "segments" else 5):
        setting.trainer._learn(news)
    setting.trainer._try_to_publish()
    assert setting.board.current(use) is not None, setting.trainer.waiting()
    await setting.client.refresh()
    two = of(
        *(
            turns("hall 1>go 3", step, last, outcome=float(step == GOOD))
            for step, last in ((GOOD, "room 1>look"), (BAD, BAD))
        )
    )
    two = replace(two, rollouts=(replace(two.rollouts[0], events=(Event("reached door", 1),)), two.rollouts[1]))
    scores = await reward.score(two, setting.services)
    assert scores.tokens is not None
    assert scores.version == f"{use}.1"
    good, bad = ([t[3], t[7], t[11]] for t in scores.tokens)
    if name == "perceptual":  # it knows the sub-steps of successes, not what failing looks like
        assert sum(good) == pytest.approx(1.0)
        assert sum(bad) == pytest.approx(2 / 3)
    else:
        assert sum(good[1:]) > sum(bad[1:]), (good, bad)
    np.testing.assert_allclose([t.sum() for t in scores.tokens], scores.values)
    assert all((np.delete(t, [3, 7, 11]) == 0).all() for t in scores.tokens)
    setting.services.close()
    setting.trainer._thread.shutdown()


@pytest.mark.parametrize("use", [u for u in STEP_REWARDS.values() if u != "segments"])
def test_a_resumed_model_goes_on_bit_by_bit(use):
    keys = ["[0,1,0,1]\x1e[1,1,0,0]", "[0,0,0,1]"] if use == "return_decomposition" else ["a\x1eb", "c"]
    values = np.array([1.0, 0.0])
    one, other = (build(MODELS, use, {"early_steps": 2}, "m") for _ in range(2))
    one.fit(keys, values)
    other.load(one.state(training=True))
    assert one.fit(keys, values) == other.fit(keys, values)
    np.testing.assert_array_equal(one.predict(keys[1:]), other.predict(keys[1:]))


async def test_a_reward_of_rollouts_without_turns_abstains(tmp_path):
    setting = Setting(tmp_path, "progress")
    scores = await SpaRl().score(group("a", "b"), setting.services)
    assert (scores.state == ABSTAINED).all()
    assert not setting.labels.news("0", 10, 0.0)
    setting.services.close()


async def test_an_unknown_outcome_is_no_label(tmp_path):
    setting = Setting(tmp_path, "progress")
    with pytest.raises(Exception, match="no version"):
        await SpaRl().score(of(turns("a>b", outcome=float("nan")), turns("c>d", outcome=0.5)), setting.services)
    (news,) = setting.labels.news("0", 10, 0.0)
    assert (news.key, news.label.value, news.label.judge) == ("c\n> d", 0.5, "told")
    setting.services.close()


def test_grounding_is_the_absence_of_an_event():
    (episode,) = episodes_of(of(turns("a>b", "c>d", events=[Event("not executed", 1), Event("reached key", 0)])))
    np.testing.assert_allclose(SpaRl().paid(np.array([0.25, 0.5]), episode), [0.75, 0.5])
    charged = SpaRl(grounding="charge").paid(np.array([0.25, 0.5]), episode)
    np.testing.assert_allclose(charged, [0.25, 0.0])  # the same differences, and no gain in length
    reached, executed, late, new = (column[:, 0].tolist() for column in step_factors(episode.steps))
    assert (reached, executed, late[0], new) == ([1, 0], [1, 0], 0, [1, 1])


def test_factors_are_a_function_of_the_recipes_own():
    (episode,) = episodes_of(of(turns("a>b", "cc>d")))
    reward = LaRe(factors=f"{__name__}:lengths")
    assert reward.inputs(episode) == ["[1.0]", "[2.0]"]
    assert reward.key(group("x"), episode) == f"policy/1/0/0{NAMED}[1.0]{STEP}[2.0]", (
        "equal factors are no equal episodes"
    )
    with pytest.raises(ConfigError, match="factors"):
        LaRe(factors="no.such:function").inputs(episode)


def lengths(steps):
    return [np.array([[float(len(step.seen))] for step in steps])]


def test_a_substep_may_pay_each_time():
    (episode,) = episodes_of(of(turns("a>b", "c>d", "e>f")))
    found = np.array([0.5, 0.25, 1.0])
    assert PerceptualReward().paid(found, episode).tolist() == [0.5, 0, 0.5]
    assert PerceptualReward(paid_as="probability").paid(found, episode).tolist() == [0.5, 0.25, 1.0]


def test_words_hash_alike_in_every_process():
    assert (
        hashed_words(["take key.", "key take"], 64)[0].tolist()
        == hashed_words(["take key.", "key take"], 64)[1].tolist()
    )


def test_a_model_without_a_judge_is_a_recipe():
    config = parse({
        "rewards": [{"use": "environment"}, {"use": "spa_rl", "missing": 0.0}],
        "reward_models": {"progress": {"use": "progress", "judge": ""}},
    })  # fmt: skip
    assert asyncio.run(judge_of("progress", config, None)(["key"])) == [None]
