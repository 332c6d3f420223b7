"""OPRL (arXiv:2509.19199): step rewards of a second language model that learns from pairs of episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.types import Group, Turn
from rewards.base import Services
from rewards.learned.client import RewardModelClient
from rewards.learned.episodes import STEP, episodes_of
from rewards.learned.implicit_steps import ImplicitSteps, Oprl, implicit_loss, written_episode
from rewards.learned.labels import MemoryLabels, pair, pair_of
from rewards.learned.publishing import Announcement, MemoryBoard, write
from tests.models import random_llama
from tests.rewards.groups import group, rollout

WON, LOST = (4, 5, 6, 7, 8, 9, 10, 11), (4, 5, 6, 12, 13, 9, 10, 14)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(random_llama(tmp_path_factory.mktemp("model"), tied=True, scale=1.0))


def test_the_numbers_of_the_catalogue():
    better, worse = [torch.tensor([0.1, 0.3])], [torch.tensor([-0.1, 0.1])]
    assert float(implicit_loss(better, worse)) == pytest.approx(0.5130153, abs=1e-6)
    assert float(implicit_loss(better, worse, "mean")) == pytest.approx(0.5981387, abs=1e-6)
    assert float(implicit_loss([torch.zeros(3)], [torch.zeros(2)])) == pytest.approx(0.6931472, abs=1e-6)


def two_turns(tokens, outcome, logprobs=None, **fields):
    """Two turns of two tokens, each behind a prompt of two."""
    turns = tuple(Turn("assistant" if i % 2 else "user", 2 * i, 2 * i + 2, str(tokens[2 * i])) for i in range(4))
    mask = np.array([False, False, True, True] * 2)
    old = np.zeros(8, np.float32) if logprobs is None else np.where(mask, logprobs, 0).astype(np.float32)
    one = rollout("", num_tokens=6)
    return replace(
        one, tokens=np.array(tokens, np.int32), loss_mask=mask, logprobs=old, turns=turns, reward=outcome, **fields
    )


def of(*rollouts) -> Group:
    return replace(group("x"), rollouts=tuple(rollouts))


def sampled_by(path, tokens, temperature=1.0):
    """What the model itself gives these tokens."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(torch.tensor([tokens])).logits[0]
    logs = (logits[:-1] / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[1:, None])[:, 0]
    return np.concatenate([[0.0], logs.numpy()])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_policy_that_is_its_own_reference_has_no_step_reward(model, temperature):
    one = of(two_turns(WON, 1.0, sampled_by(model, list(WON), temperature), temperature=temperature))
    text = written_episode(one, episodes_of(one)[0])
    learnt = ImplicitSteps(encoder=model)
    np.testing.assert_allclose(learnt.predict([f"{text}{STEP}0", f"{text}{STEP}1"]), 0, atol=1e-6)
    assert learnt.agreement([pair(text, text)], np.array([1.0])) == 0.5


def test_it_learns_which_turn_tells_success_from_failure(model):
    both = of(*(two_turns(t, 1.0, sampled_by(model, list(t))) for t in (WON, LOST)))
    won, lost = (written_episode(both, e) for e in episodes_of(both))
    learnt = ImplicitSteps(encoder=model, lr=1e-3, early_steps=20, beta=0.5)
    first = learnt.fit([pair(won, lost)], np.array([1.0]))
    assert learnt.fit([pair(won, lost)], np.array([1.0])) < first < np.log(2) + 1e-6
    assert learnt.agreement([pair(won, lost)], np.array([1.0])) == 1.0
    a, b = (learnt.predict([f"{text}{STEP}{k}" for k in (1, 0)]) for text in (won, lost))
    assert a.sum() > b.sum()
    again = ImplicitSteps(encoder=model)
    again.load(learnt.state(training=False))
    np.testing.assert_allclose(again.predict([f"{won}{STEP}0"]) * 10, learnt.predict([f"{won}{STEP}0"]), rtol=1e-5)


async def test_successes_are_paired_with_failures_and_turns_are_scored(model, tmp_path):
    labels, board = MemoryLabels(version="told"), MemoryBoard()

    def build():
        return ImplicitSteps(encoder=model)

    client = RewardModelClient("implicit_steps", "implicit_steps", build, labels=labels, board=board)
    services = Services(reward_models={"implicit_steps": client})
    chain = [replace(two_turns(LOST, 0.0), chained=True, episode=0) for _ in range(2)]
    one = of(two_turns(WON, 1.0), two_turns(LOST, 0.0), *chain)
    with pytest.raises(Exception, match="no version"):
        await Oprl().score(one, services)
    news = labels.news("0", 10, 0.0)
    assert len(news) == 2, "one success, and two failures of which one is a chain"
    assert {n.label.value for n in news} == {1.0}
    assert {pair_of(n.key)[0] for n in news} == {written_episode(one, episodes_of(one)[0])}
    with pytest.raises(Exception, match="no version"):
        await Oprl().score(of(two_turns(WON, 1.0), two_turns(WON, 1.0)), services)
    assert len(labels.news("0", 10, 0.0)) == 2, "a group without a failure tells nothing"
    path = tmp_path / "1.model"
    write(path, build().state(training=False))
    board.announce(Announcement("implicit_steps", "implicit_steps.1", str(path), 2, 1.0))
    await client.refresh()
    scores = await Oprl().score(one, services)
    assert scores.tokens is not None
    assert all((np.delete(t, [3, 7]) == 0).all() and (t[[3, 7]] != 0).all() for t in scores.tokens)
    np.testing.assert_allclose(scores.tokens[1], scores.tokens[2], rtol=1e-5)
    services.close()


def test_episodes_read_together_get_what_each_gets_alone(model, monkeypatch):
    rng = np.random.default_rng(0)
    texts = []
    for length in (2, 7, 3, 12):
        tokens = rng.integers(4, 16, 2 * length).astype(np.int32)
        turns = (Turn("user", 0, length, ""), Turn("assistant", length, 2 * length, ""))
        mask, old = np.arange(2 * length) >= length, np.full(2 * length, -1.5, np.float32)
        one = of(replace(rollout("", num_tokens=6), tokens=tokens, loss_mask=mask, logprobs=old, turns=turns))
        texts.append(written_episode(one, episodes_of(one)[0]))
    learnt = ImplicitSteps(encoder=model)
    alone = np.concatenate([learnt.predict([f"{text}{STEP}0"]) for text in texts])
    assert len(np.unique(alone.round(4))) == len(texts)
    for bound in (1, 30, 4096):
        monkeypatch.setattr("rewards.learned.implicit_steps.BATCH_TOKENS", bound)
        np.testing.assert_allclose(learnt.predict([f"{text}{STEP}0" for text in texts]), alone, atol=1e-6)
