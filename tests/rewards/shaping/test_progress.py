"""SCoRe (arXiv:2409.12917): the catalogue's figures, what each attempt is credited with, and a KL penalty per turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors import episode
from actors.environments.attempts import Attempts as Asked
from cluster.config import LearnerSection, RewardSection
from cluster.errors import ConfigError
from cluster.types import ABSTAINED, FAILED, Group, Rollout, ScoredGroup, Task, Turn
from learner.advantages.estimators import LeaveOneOut, advantages_of, returns_of
from learner.losses.policy_losses import TurnwiseReinforce, mean_by_turn, penalised, turn_of_token
from learner.pack import TokenBatch
from learner.reference import wants_reference
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.shaping.progress import progress
from rewards.base import Services
from rewards.builtin.attempts import Attempts
from tests.actors.typist import Letters, Typist
from tests.rewards.groups import group


def tried(first: str, second: str | None) -> Rollout:
    """`47+38=` first `?` second, one token a character."""
    turns, texts, place = [], [("user", "47+38="), ("assistant", first)], 0
    texts += [("user", "?"), ("assistant", second)] if second is not None else []
    for role, text in texts:
        turns.append(Turn(role, place, place + len(text), text))
        place += len(text)
    mask = np.concatenate([np.full(len(text), role == "assistant") for role, text in texts])
    finish = "stop" if second is not None else "length"
    return Rollout(
        np.arange(place, dtype=np.int32), mask, np.zeros(place, np.float32), f"{first}\n{second}", tuple(turns), (),
        finish, answer=second,
    )  # fmt: skip


def tries(*pairs: tuple[str, str | None]) -> Group:
    return replace(group(), rollouts=tuple(tried(*pair) for pair in pairs))


async def scored(tries: Group, **options):
    services = Services()
    try:
        return await Attempts(**options).score(tries, services)
    finally:
        services.close()


@pytest.mark.parametrize(("pair", "reward"), [((0, 0), 0), ((0, 1), 11), ((1, 0), -10), ((1, 1), 1)])
def test_the_rewards_of_the_second_stage(pair, reward):
    assert progress(*pair, stage=2) == (pair[0], reward)
    assert progress(*pair, stage=1) == (0, pair[1])


def test_the_returns_of_the_catalogue():
    """Mean KL is that of the turn: two tokens of 0.2 and 0.4 nats, and one of 0.5."""
    logprobs = torch.tensor([[0.0, 0.2, 0.4, 0.0, 0.5]])
    mask = torch.tensor([[False, True, True, False, True]])
    rollout = torch.zeros(1, 5, dtype=torch.long)
    found, kl = penalised(torch.tensor([[0.0, 0, 0, 0, 1]]), logprobs, torch.zeros(1, 5), mask, rollout, (0.1, 0.01))
    assert kl[0].tolist() == pytest.approx([0, 0.3, 0.3, 0, 0.5])
    assert found[0].tolist() == pytest.approx([0, -0.03, -0.03, 0, 0.995])
    found, _ = penalised(torch.tensor([[0.0, 0, 0, 0, 11]]), logprobs, torch.zeros(1, 5), mask, rollout, (0.01,))
    assert found[0, 4].item() == pytest.approx(10.995)


def test_turns_are_told_apart_in_packed_rows():
    mask = torch.tensor([[False, True, True, False, True, False, True], [True, False, True, True, False, False, True]])
    rollout = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [2, 2, 2, 3, 3, 4, 4]])
    run, turn = turn_of_token(mask, rollout)
    assert turn.tolist() == [[-1, 0, 0, -1, 1, -1, 0], [0, -1, 1, 0, -1, -1, 0]]
    values = torch.arange(14.0).reshape(2, 7)
    assert mean_by_turn(values, run).tolist() == [[0, 1.5, 1.5, 0, 4, 0, 6], [7, 0, 9, 10, 0, 0, 13]]


def test_the_penalty_is_in_the_reward_and_not_in_the_gradient():
    logprobs = torch.tensor([[0.0, -1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True]])
    zeros = torch.zeros(1, 3)
    tokens = TokenBatch(
        mask, mask.float(), zeros, mask * 2.0, zeros.long(), zeros.long(), torch.tensor([[0.0, -1.5, -1.5]])
    )
    loss, metrics = TurnwiseReinforce(betas=(0.5,)).loss(logprobs, tokens)
    loss.backward()  # mean KL is (0.5 − 0.5) / 2 = 0
    assert loss.item() == pytest.approx(6.0)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, -2.0, -2.0]]
    assert metrics["loss/turn_kl_nats"].item() == pytest.approx(0)
    assert wants_reference(LearnerSection.model_validate({"loss": {"use": "turnwise_reinforce"}}))
    assert not wants_reference(LearnerSection())


async def test_each_attempt_is_checked_by_itself_and_credited_with_its_own():
    both = tries(("85", "85"), ("84", "85"), ("85", "8"), ("1", "2"))
    scores = await scored(both)
    assert scores.values.tolist() == [1, 1, 0, 0]
    assert scores.tokens is not None
    assert scores.tokens[2].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0], "the first attempt's last token"
    for value, expected in {"first": [1, 0, 1, 0], "gained": [0, 1, 0, 0], "lost": [0, 0, 1, 0]}.items():
        found = await scored(both, value=value)
        assert found.values.tolist() == expected
        assert found.tokens is None
    for stage, first, second in ((1, [0, 0, 0, 0], [1, 1, 0, 0]), (2, [1, 0, 1, 0], [1, 11, -10, 0])):
        section = RewardSection.model_validate(
            {"use": "attempts", "shape": {"use": "progress", "options": {"stage": stage}}}
        )
        mixed = Mixer([section], ["attempts"], 1)(both, {"attempts": scores})
        one = ScoredGroup(both, {}, reward=mixed)
        returns = returns_of(one, 0.0)
        assert returns.T.tolist() == [first, second]
        advantages = advantages_of(LeaveOneOut(), "leave_one_out", [one], 0.0)[0]
        for i, (turns, given) in enumerate(zip((r.turns for r in both.rollouts), advantages, strict=True)):
            for turn, column in zip(turns[1::2], returns.T, strict=True):
                others = np.delete(column, i).mean()
                assert given[turn.start : turn.end] == pytest.approx(column[i] - others)


async def test_a_missing_attempt_is_unknown_and_never_wrong():
    scores = await scored(tries(("85", None), ("84", "85")))
    assert scores.state.tolist() == [FAILED, 0]
    assert scores.tokens is not None
    assert np.isnan(scores.tokens[0]).all()
    without = replace(tries(("8", "85")), task=Task.of("x", "47+38="))
    assert (await scored(without)).state.tolist() == [ABSTAINED]
    section = RewardSection.model_validate({"use": "exact", "shape": {"use": "progress"}})
    with pytest.raises(ConfigError, match="that reward has none"):
        Mixer([section], ["exact"], 1)(tries(("8", "85")), {"exact": await scored(tries(("8", "85")), value="first")})


async def test_the_second_attempt_sees_the_first():
    shown: list[str] = []
    moves = iter(["84", "85"])
    typist = Typist(lambda text: (shown.append(text), next(moves))[1])
    limits = episode.Limits(max_tokens=9, max_turns=2, temperature=1.0)
    task = Task.of("sum", "47+38=", "85")
    rollout = await episode.play(typist, Letters(), Asked(instruction="Again."), task, "orig", limits)
    assert shown == ["47+38=", "Again."]
    assert "".join(chr(t) for t in rollout.tokens if t > 2) == "47+38=84Again.85"
    assert rollout.answer == "85"
    assert rollout.events[0].text == "changed"
    assert [t.text for t in rollout.turns if t.role == "assistant"] == ["84", "85"]
    moves = iter(["84", "85"])
    cut = await episode.play(Typist(lambda text: next(moves), cut_in_turn=0), Letters(), Asked(), task, "orig", limits)
    assert (cut.finish, cut.answer) == ("stop", "85"), "a first answer that is cut short gets its second chance"
