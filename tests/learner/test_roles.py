"""Role-conditioned advantages (SPIRAL, arXiv:2506.24119): the catalogue's figures, and a memory that repeats itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.types import AssembledBatch, BatchRecord, Group, Turn
from learner.advantages.estimators import RoleBaseline, advantages_of, role_advantages
from learner.advantages.registry import ADVANTAGES
from learner.plugin_state import ADVANTAGE, PluginState
from tests.learner.groups import scored
from tests.rewards.groups import group


def seated(*roles: str, seq: int = 0, source: str = "KuhnPoker") -> Group:
    plain = group(*("x" for _ in roles), seq=seq)
    rollouts = tuple(replace(r, agent=agent) for r, agent in zip(plain.rollouts, roles, strict=True))
    return replace(plain, task=replace(plain.task, source=source), rollouts=rollouts)


def cut_of(groups: list[Group], *rewards: list[float]) -> AssembledBatch:
    record = BatchRecord("policy", 0, tuple(g.id for g in groups), tuple(map(np.array, rewards)), ())
    return AssembledBatch(record, groups)


def test_the_catalogue_s_figures():
    advantages, after = role_advantages([["a", "a", "a"]], [np.array([1.0, -1.0, 0.0])], {}, 0.95)
    assert advantages[0] == pytest.approx([1, -1.05, 0.0025], abs=1e-12)
    assert after["a"] == pytest.approx(-0.002375, abs=1e-12)


def test_each_game_and_agent_has_its_own_baseline():
    plugin = RoleBaseline()
    groups = [seated("0", "1"), seated("0", "1", seq=1, source="TicTacToe")]
    memory = plugin.update(plugin.init_state(), cut_of(groups, [1.0, -1.0], [0.5, np.nan]))
    assert memory == pytest.approx({"KuhnPoker_0": 0.05, "KuhnPoker_1": -0.05, "TicTacToe_0": 0.025})
    first, second = plugin.advantages([scored(groups[0], [0.0, 0.0]), scored(groups[1], [0.0, 1.0])], memory)
    assert first == pytest.approx([-0.05, 0.05])
    assert second == pytest.approx([-0.025, 1.0])
    assert plugin.metrics(memory)["advantage/baseline_KuhnPoker_0"] == pytest.approx(0.05)
    unmoved = plugin.update(memory, cut_of([seated("0", "1")], [np.nan, np.nan]))
    assert unmoved == memory


def test_what_a_cut_decides_is_what_its_memory_takes_in():
    """A step repeated from its record must leave the same baselines: `update` and `advantages` see the same order."""
    plugin, rng = RoleBaseline(), np.random.default_rng(0)
    groups = [seated("0", "1", "1", seq=i) for i in range(5)]
    rewards = [rng.normal(size=3) for _ in groups]
    memory = PluginState({ADVANTAGE: plugin})
    before = memory.of(ADVANTAGE)
    found = advantages_of(plugin, "role_baseline", list(map(scored, groups, rewards)), state=before)
    memory.update(cut_of(groups, *rewards))
    keys = [["KuhnPoker_0", "KuhnPoker_1", "KuhnPoker_1"] for _ in groups]
    expected, after = role_advantages(keys, rewards, {}, 0.95)
    assert np.allclose([np.concatenate(of) for of in found], expected, atol=1e-6)
    assert memory.of(ADVANTAGE) == after
    assert before == {}, "a memory is never changed in place"


def test_a_memory_survives_a_checkpoint(tmp_path):
    memory = PluginState({ADVANTAGE: RoleBaseline()})
    memory.update(cut_of([seated("0", "1")], [1.0, -1.0]))
    memory.save(tmp_path)
    fresh = PluginState({ADVANTAGE: RoleBaseline()})
    fresh.load(tmp_path)
    assert fresh.of(ADVANTAGE) == memory.of(ADVANTAGE) != {}
    with pytest.raises(Exception, match="no memory of advantage"):
        fresh.load(tmp_path / "nowhere")


def test_a_discount_per_turn_counts_back_from_the_last():
    plain = seated("0")
    turns = (Turn("user", 0, 1, ""), Turn("assistant", 1, 2, ""), Turn("user", 2, 2, ""), Turn("assistant", 2, 3, ""))
    one = replace(plain, rollouts=(replace(plain.rollouts[0], turns=turns),))
    ((advantages,),) = RoleBaseline(gamma=0.5).advantages([scored(one, [1.0])], {})
    assert advantages.tolist() == [0.0, 0.5, 1.0]
    assert ADVANTAGES["role_baseline"] is RoleBaseline
