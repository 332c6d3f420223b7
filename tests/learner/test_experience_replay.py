"""SPEAR (arXiv:2509.22601): the catalogue's figures, what is kept and for how long, what a batch makes of replays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import LearnerSection
from cluster.types import AssembledBatch, BatchRecord, Event, Group, decode, encode
from learner.batch.experience_replay import Spear, baseline, cosine, num_replayed
from learner.batch.trained_logprobs import TrainedLogprobs
from learner.controllers.schedules import Cosine
from learner.losses.policy_losses import ClippedCovariance, covariances, left_out
from learner.pack import TokenBatch, pack
from learner.plugin_state import EXPERIENCE_REPLAY, PluginState
from rewards.base import Services
from rewards.builtin.events import Events
from tests.rewards.groups import group


def cut_of(step: int, groups: list[Group], rewards: list[list[float]], advantages: list[list[float]]) -> AssembledBatch:
    credit = tuple(tuple(np.array([a], np.float32) for a in of) for of in advantages)
    record = BatchRecord("policy", step, tuple(g.id for g in groups), tuple(map(np.array, rewards)), credit)
    return AssembledBatch(record, groups)


def used(group: Group) -> Group:
    return replace(group, rollouts=tuple(replace(r, events=(Event("call", 0),)) for r in group.rollouts))


def test_the_schedules_of_the_catalogue():
    scale = [Spear().scale * (1 - cosine(step, 300)) for step in (50, 100, 300, 400)]
    assert scale == pytest.approx([0.0669873, 0.25, 1.0, 1.0], abs=1e-7)
    bonus = min(1, 0.1 * 5) * Cosine(key="rewards.1.weight", steps=200).patch(50)["rewards.1.weight"]
    assert bonus == pytest.approx(0.4267767, abs=1e-7)


def test_the_baseline_is_the_median_of_group_means():
    assert baseline([0.2, 0.5, 0.9]) == 0.5
    assert np.isnan(baseline([]))
    assert [num_replayed(n, 32) for n in (45, 48, 49, 63, 64, 200)] == [0, 0, 32, 32, 32, 32]
    assert num_replayed(49, 100, trigger=0.4) == 32


def test_rollouts_of_earlier_steps_above_the_baseline_are_replayed_for_the_difference():
    plugin = Spear(buffer_size=1, trigger=0.5, ramp_steps=100, scale=1.0)
    groups = [group("a", "b", seq=0), group("c", "d", seq=1)]
    memory = {"means": [0.2, 0.5], "kept": []}
    memory = plugin.update(memory, cut_of(49, groups, [[1.0, 0.8], [0.4, 0.1]], [[0.1, -0.1], [0.15, -0.15]]))
    now = cut_of(50, [group("e", "f", seq=2)], [[1.0, 1.0]], [[0.5, 0.5]])
    (replayed,) = plugin.chosen(memory, now.groups, now.record)
    # The means are 0.2, 0.5, 0.9 and 0.25: the median is 0.375. 'a' and 'c' have positive advantages, 0.625 and 0.025.
    assert {r.text for r in replayed.group.rollouts} <= {"a", "c"}
    gain = {"a": 1.0 - 0.375, "c": 0.4 - 0.375}[replayed.group.rollouts[0].text]
    assert replayed.advantages[0][0] == pytest.approx(0.5 * gain)
    worse = cut_of(49, groups, [[1.0, 0.8], [0.1, 0.0]], [[0.1, -0.1], [0.05, -0.05]])
    memory = plugin.update({"means": [0.2, 0.5], "kept": []}, worse)
    (one,) = plugin.chosen(memory, now.groups, now.record)
    assert one.group.rollouts[0].text == "a", "0.1 is below the baseline"


def test_a_step_never_replays_its_own_rollouts_and_a_replay_empties_the_buffer_first():
    plugin, memory, seen = Spear(buffer_size=32, ramp_steps=1), Spear().init_state(), []
    for step in range(1, 8):  # 16 groups of 2, of which 1 is better than the group: 16 rollouts join at every step
        groups = [group(f"good {step}", f"bad {step}", seq=100 * step + i) for i in range(16)]
        now = cut_of(step, groups, [[1.0, 0.0]] * 16, [[0.5, -0.5]] * 16)
        now.record = PluginState({EXPERIENCE_REPLAY: plugin}).completed(now.record, groups)
        now.record = replace(now.record, replayed=plugin.chosen(memory, groups, now.record))
        ids = {g.id for g in groups}
        assert not ids & {r.group.id for r in now.record.replayed}
        seen.append(len(now.record.replayed))
        memory = plugin.update(memory, now)
        assert ids <= {decode(k["group"], Group).id for k in memory["kept"]}, "a step joins the buffer after its draw"
    # 16, 32 and 48 are not more than 48; 64 in the fifth step are, and then the buffer starts again from 16.
    assert seen == [0, 0, 0, 0, 32, 0, 0]


def test_the_buffer_forgets_the_old_the_truncated_and_those_without_a_tool_and_is_emptied_by_a_replay():
    plugin = Spear(buffer_size=2, trigger=1.0, tolerate_steps=2, event="call")
    memory = plugin.init_state()
    groups = [used(group("a", "b", seq=0))]
    memory = plugin.update(memory, cut_of(0, groups, [[1.0, 0.0]], [[0.5, -0.5]]))
    assert [decode(k["group"], Group).rollouts[0].text for k in memory["kept"]] == ["a"]
    memory = plugin.update(memory, cut_of(1, [group("x", "y")], [[1.0, 0.0]], [[0.5, -0.5]]))
    short = replace(groups[0], rollouts=tuple(replace(r, finish="length") for r in groups[0].rollouts))
    memory = plugin.update(memory, cut_of(2, [short], [[1.0, 0.0]], [[0.5, -0.5]]))
    assert [k["step"] for k in memory["kept"]] == [0], "neither a tool nor a whole rollout"
    assert plugin.update(memory, cut_of(3, [], [], []))["kept"] == [], "older than two steps"
    several = [used(group("a", "b", "c", "d", seq=i)) for i in range(2)]
    rehearsing = PluginState({EXPERIENCE_REPLAY: plugin})
    rehearsing.update(cut_of(3, several, [[1.0, 1.0, 0.0, 0.0]] * 2, [[0.5, 0.5, -0.5, -0.5]] * 2))
    later = [group("x", "y", seq=9)]
    now = cut_of(4, later, [[0.0, 0.0]], [[0.0, 0.0]])
    now.record = rehearsing.completed(now.record, later)
    assert len(now.record.replayed) == 2
    assert now.record.metrics["replay/num_rollouts"] == 2
    again = plugin.chosen(rehearsing.of(EXPERIENCE_REPLAY), later, now.record)
    assert again[0].group.id == now.record.replayed[0].group.id, "not by chance"
    assert plugin.update(rehearsing.of(EXPERIENCE_REPLAY), now)["kept"] == []
    assert decode(encode(now.record), BatchRecord).replayed[0].rewards.tolist() == [1.0]


def test_a_batch_has_the_replays_behind_its_own_and_older():
    plugin = Spear(buffer_size=2, trigger=1.0, ramp_steps=1)
    groups = [group("aa", "b", "cc", "d", seq=i) for i in range(2)]
    earlier = [group("aa", "b", "cc", "d", seq=5 + i) for i in range(2)]
    memory = PluginState({EXPERIENCE_REPLAY: plugin})
    memory.update(cut_of(2, earlier, [[1.0, 1.0, 0.0, 0.0]] * 2, [[0.5, 0.5, -0.5, -0.5]] * 2))
    now = cut_of(3, groups, [[1.0, 1.0, 0.0, 0.0]] * 2, [[0.5, 0.5, -0.5, -0.5]] * 2)
    record = memory.completed(now.record, groups)
    section = LearnerSection()
    plain, with_replays = pack(groups, now.record, section), pack(groups, record, section)
    more = sum(r.num_tokens for replayed in record.replayed for r in replayed.group.rollouts)
    assert with_replays.num_rollouts == plain.num_rollouts + 2
    assert with_replays.num_tokens == plain.num_tokens + more
    trained = TrainedLogprobs()
    for micro in with_replays.micros:
        trained.on_logprobs(micro, torch.full(micro.tokens.shape, -0.5))
    seen = trained.take(groups, record, section)
    assert all(np.isfinite(values).sum() == r.num_tokens for of, g in zip(seen, groups, strict=True)
               for values, r in zip(of, g.rollouts, strict=True))  # fmt: skip
    advantages = np.concatenate([m.advantages[m.loss_mask] for m in with_replays.micros])
    assert np.isclose(advantages, 0.5).sum() == 2 * 3 + more  # R − P50 = 1 − 0.5 at full strength, as it happens


def test_the_covariance_clip_of_the_catalogue():
    advantages, logprobs = torch.tensor([[2.0, -1.0, -1.0]]), torch.tensor([[0.0, -2.0, -4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert covariances(advantages, logprobs, mask).tolist() == [[4.0, 0.0, 2.0]]
    bounds = {"low": 1.0, "high": 40.0, "frac": 2e-4, "clip_low": 0.2, "clip_high": 0.2}
    out = left_out(advantages, logprobs, logprobs, mask, **bounds)
    assert out.sum() == 1
    assert not out[0, 1]
    assert left_out(advantages, logprobs, logprobs, mask, **bounds | {"frac": 1.0}).tolist() == [[True, False, True]]
    stopped = left_out(advantages, logprobs, logprobs - torch.tensor([[1.0, 0, 0]]), mask, **bounds | {"frac": 1.0})
    assert stopped.tolist() == [[False, False, True]], "its ratio is clipped already"
    tokens = TokenBatch(mask, mask.float(), logprobs, advantages, torch.zeros(1, 3, dtype=torch.long), mask.long())
    loss, metrics = ClippedCovariance(low=1, high=40, frac=1.0).loss(logprobs, tokens)
    assert loss.item() == pytest.approx(1.0), "only the second token's −A · ratio is left"
    assert metrics["loss/covariance_clip_frac"] == 2


async def test_the_bonus_for_tools_is_bounded():
    calls = [0, 5, 30]
    plain = group("a", "b", "c")
    rollouts = tuple(
        replace(r, events=(Event("call", 0),) * n + (Event("other", 0),))
        for r, n in zip(plain.rollouts, calls, strict=True)
    )
    services = Services()
    scores = await Events(event="call").score(replace(plain, rollouts=rollouts), services)
    services.close()
    assert scores.values == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("seed", range(20))
def test_any_course_of_rewards_is_replayed_as_a_plain_reimplementation_does(seed):
    """Over 25 steps: what may be drawn, for which advantage, how many, and when the buffer starts again."""
    luck = np.random.default_rng(seed)
    size, tolerate, ramp = int(luck.choice([2, 4, 6])), int(luck.integers(1, 5)), int(luck.integers(1, 30))
    plugin = Spear(buffer_size=size, tolerate_steps=tolerate, ramp_steps=ramp, num_means=12, trigger=1.5)
    memory, means, buffer, replays = plugin.init_state(), [], [], 0
    for step in range(25):
        groups = [group(*"abc", seq=10 * step + i) for i in range(3)]
        rewards = luck.choice([0.0, 0.5, 1.0], (3, 3)).tolist()
        credit = [[r - float(np.mean(of)) for r in of] for of in rewards]
        now = cut_of(step, groups, rewards, credit)
        middle = float(np.median(means[-12:])) if means else float("nan")
        may = {(s, g, t): r for s, g, t, r in buffer if step - s <= tolerate and r > middle}
        count = 0
        if len(may) > 1.5 * size:
            count = 1
            while count * 2 <= len(may):
                count *= 2
            count = min(size, count)
        strength = (1 - np.cos(np.pi * min(step, ramp) / ramp)) / 2
        found = plugin.chosen(memory, groups, now.record)
        drawn = {(r.group.id, r.group.rollouts[0].text): float(r.advantages[0][0]) for r in found}
        assert len(drawn) == len(found) == count
        allowed = {(g, t): strength * (r - middle) for (_, g, t), r in may.items()}
        for key, advantage in drawn.items():
            assert advantage == pytest.approx(allowed[key], abs=1e-6)
        replays += bool(count)
        now.record = replace(now.record, replayed=found)
        memory = plugin.update(memory, now)
        buffer = [] if count else [b for b in buffer if step - b[0] <= tolerate]
        buffer += [
            (step, g.id, r.text, reward)
            for g, of, above in zip(groups, rewards, credit, strict=True)
            for r, reward, gain in zip(g.rollouts, of, above, strict=True)
            if gain > 0
        ]
        means += [float(np.mean(of)) for of in rewards]
    assert replays or size > 2 or tolerate == 1
