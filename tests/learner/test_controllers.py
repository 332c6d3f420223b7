"""Settings that change between steps: B-STaR's balance score, stages, and who hears of a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.config import LearnerSection, load, parse
from cluster.errors import ConfigError
from cluster.plugins import Plugin
from cluster.types import AssembledBatch, BatchRecord, Group, Scores, decode, encode
from learner.controllers import Considered, Controller
from learner.controllers.apply import Steering, memory_of, steered
from learner.controllers.bstar import BStar, balance_of
from learner.controllers.lagrangian import Constraint, Lagrangian, multipliers, weights
from learner.plugin_state import PluginState
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.selectors.threshold import Threshold, best, share
from tests.rewards.groups import group


def considered(*found: tuple[Group, list[float]], mix: Mixer | None = None) -> Considered:
    """Groups with the scores of the reward `exact`, selected by `threshold` alone."""
    groups, scores = [g for g, _ in found], [{"exact": Scores.of(v)} for _, v in found]
    mixer = mix or Mixer(parse({"rewards": [{"use": "exact"}]}).rewards, ["exact"], 1)

    def selected_under(settings):
        selector = Threshold(threshold=settings["selectors.0.options.threshold"])
        return selector.of_step(groups, scores, mixer.of_step(groups, scores))

    return Considered(groups, scores, selected_under)


def after(plugin: Controller, memory: Any, step: int, *found: tuple[Group, list[float]]) -> Any:
    """The memory after a step that looked at these groups and trained on none: all were dropped."""
    noted = decode(encode(plugin.observe(considered(*found))), Any)
    return plugin.update(memory, AssembledBatch(BatchRecord("policy", step, (), (), ()), [], observed=noted))


def sampled(temperature: float, right: int, wrong: int, seq: int = 0) -> tuple[Group, list[float]]:
    plain = group(*(f"{i}" for i in range(right + wrong)), seq=seq)
    rollouts = tuple(replace(r, temperature=temperature) for r in plain.rollouts)
    return replace(plain, rollouts=rollouts), [1.0] * right + [0.0] * wrong


def test_the_balance_scores_of_the_catalogue():
    queries = [(8, 8), (8, 4), (10, 9)]
    assert [balance_of(*q) for q in queries] == [1.0, 0.25, 0.9]
    assert np.mean([balance_of(*q) for q in queries]) == pytest.approx(0.716667, abs=1e-6)
    assert np.mean([balance_of(*q, n_star=6) for q in queries]) == pytest.approx(0.744444, abs=1e-6)


def test_every_temperature_is_tried_and_the_best_is_kept():
    plugin = BStar(correct="exact", temperatures=(0.5, 1.0), thresholds=(-0.5, 0.5), iteration_steps=4)
    memory, temperatures = plugin.init_state(), []
    found = {0.5: sampled(0.5, 2, 2), 1.0: sampled(1.0, 8, 8)}
    for step in range(4):
        temperature = plugin.patch(memory)["rollout.temperature"]
        temperatures.append(temperature)
        memory = after(plugin, memory, step, found[temperature])
    assert temperatures == [0.5, 1.0, 1.0, 1.0]
    # 8 right of 16 above −0.5 is 0.5, 8 of 8 above 0.5 is 1: exploiting more at the hotter temperature is best.
    assert memory["best"] == [1.0, 0.5, 1.0]
    assert plugin.metrics(memory)["settings/balance"] == 1.0
    again = plugin.patch(memory)
    assert (again["rollout.temperature"], again["selectors.0.options.threshold"]) == (0.5, 0.5), "measured anew"
    later = after(plugin, memory, 4, sampled(0.5, 8, 0))
    assert list(later["balances"]) == ["0.5"], "an iteration forgets the last one's balances"


def test_a_temperature_at_which_most_tasks_fail_is_not_judged_by_the_tasks_it_solves():
    """At 1.1 one task of four is solved by all, at 0.5 half of each: among groups that survive the filter 1.1 leads."""
    plugin = BStar(correct="exact", temperatures=(0.5, 1.1), thresholds=(0.5,), iteration_steps=4)
    memory = after(plugin, plugin.init_state(), 0, *(sampled(0.5, 6, 2, seq=i) for i in range(4)))
    memory = after(plugin, memory, 1, sampled(1.1, 8, 0), *(sampled(1.1, 0, 8, seq=1 + i) for i in range(3)))
    assert memory["balances"] == {"0.5": ([4 * balance_of(6, 6)], 4), "1.1": ([balance_of(8, 8)], 4)}
    assert memory["best"][0] == 0.5


def test_the_balance_is_of_the_responses_that_would_be_trained_on():
    """The process reward's lowest step counts a fifth: right with 0.9, 0.5, 0.8 is 1.1, wrong with 0.9 is 0.18."""
    sections = parse({"rewards": [{"use": "exact"}, {"use": "exact", "name": "steps", "weight": 0.2}]}).rewards
    mixer = Mixer(sections, ["exact", "steps"], 1)
    two = group("a", "b")
    scores = [{"exact": Scores.of([1.0, 0.0]), "steps": Scores.of([0.5, 0.9])}]
    assert mixer.of_step([two], scores)[0].rewards == pytest.approx([1.1, 0.18])
    copies = group("85", "85", "85", "86")
    memory = after(
        BStar(correct="exact", thresholds=(0.5,)),
        BStar(correct="exact").init_state(),
        0,
        (copies, [1.0] * 3 + [np.nan]),
    )
    assert memory["balances"] == {"1.0": ([balance_of(1, 1)], 1)}, "copies and unknown scores are no exploration"


def test_what_a_controller_noted_is_in_the_record_and_a_repeated_step_finds_it():
    config = load("deploy/recipes/methods/b_star.toml")
    memory = memory_of(config, {})
    mixer = Mixer(config.rewards, ["exact"], 1)
    selector = Threshold(threshold=0.0)
    Steering(config, lambda c, m: (mixer.of_step, selector.of_step), memory)
    noted = memory.completed(BatchRecord("policy", 0, (), (), ()), [], considered(sampled(0.5, 0, 4)))
    assert noted.observed == {"controllers.0": {"0.5": [[0.0, 0.0], 1]}}
    again = decode(encode(noted), BatchRecord)
    memory.update(AssembledBatch(again, []))
    assert memory.of("controllers.0")["balances"] == {"0.5": ([0.0, 0.0], 1)}


def test_the_selector_keeps_the_best_distinct_ones():
    assert share([4, 1, 0], 4) == 3
    assert share([4, 1, 0], 5) == 4
    assert share([4, 1, 0], 99) == share([4, 1, 0], None) == 4
    assert best(np.array([0.5, 0.9, 0.9, 1.0]), np.array([True, True, True, False]), 1).tolist() == [0, 1, 0, 0]
    groups = [group("a", "b", "a", "c"), group("d", "e", seq=1)]
    mixer = Mixer(parse({"rewards": [{"use": "exact"}]}).rewards, ["exact"], 1)
    scores = [{"exact": Scores.of([1.0, 1.1, 1.0, 0.2])}, {"exact": Scores.of([0.0, 0.1])}]
    mixed = mixer.of_step(groups, scores)
    kept = Threshold(threshold=0.5).of_step(groups, scores, mixed)
    assert np.isfinite(kept[0].rewards).tolist() == [True, True, False, False]
    assert kept[1].drop == "below_threshold"
    one = Threshold(threshold=0.15, target=1).of_step(groups, scores, mixed)
    assert np.isfinite(one[0].rewards).tolist() == [False, True, False, False]


def test_a_change_reaches_mixer_selection_and_losses():
    tree = {
        "rewards": [{"use": "exact"}],
        "selectors": [{"use": "best"}],
        "controllers": [
            {"use": "stages", "options": {"at": 2, "then": {"rewards.0.weight": 3.0, "learner.loss.kl_coef": 0.5}}},
            {"use": "cosine", "options": {"key": "selectors.0.options.count", "start": 2, "end": 2}},
        ],
    }
    config, asked = parse(tree), []
    memory = memory_of(config, {})
    steering = Steering(config, lambda c, m: (asked.append(c), (lambda g, s: [c], lambda g, s, m: [c]))[1], memory)
    assert memory.settings() == {"selectors.0.options.count": 2.0}
    (now,) = steering.mix([], [])  # pyright: ignore
    assert now.selectors[0].options == {"count": 2.0}
    for step in range(2):
        memory.update(AssembledBatch(BatchRecord("policy", step, (), (), ()), []))
    (now,) = steering.select([], [], [])  # pyright: ignore
    assert (now.rewards[0].weight, now.learner.loss.kl_coef) == (3.0, 0.5)
    steering.mix([], [])
    assert len(asked) == 3, "made anew only where something changed"
    assert steered(LearnerSection(), memory.settings()).loss.kl_coef == 0.5
    record = memory.completed(BatchRecord("policy", 2, (), (), ()), [])
    assert record.settings == memory.settings()
    assert record.metrics["settings/rewards.0.weight"] == 3.0


def test_what_is_decided_once_cannot_be_changed():
    tree = {"controllers": [{"use": "stages", "options": {"at": 1, "first": {"model.path": "x"}, "then": {"a": 1}}}]}
    with pytest.raises(ConfigError, match="which is decided once"):
        memory_of(parse(tree), {})
    tree["controllers"][0]["options"]["first"] = {"learner.loss.kl_cof": 1}
    with pytest.raises(ConfigError, match="kl_cof"):
        memory_of(parse(tree), {})


def test_a_controller_goes_on_where_a_checkpoint_left_it(tmp_path):
    settings = load("deploy/recipes/methods/b_star.toml")
    memory = memory_of(settings, {})

    def step(memory, number: int, temperature: float, right: int, seq: int) -> None:
        record = BatchRecord("policy", number, (), (), ())
        memory.update(
            AssembledBatch(memory.completed(record, [], considered(sampled(temperature, right, 1, seq=seq))), [])
        )

    for number in range(3):
        step(memory, number, 0.7, 3, number)
    memory.save(tmp_path)
    fresh = memory_of(settings, {})
    assert fresh.settings() != memory.settings()
    fresh.load(tmp_path)
    assert fresh.settings() == memory.settings()
    (total, count) = fresh.of("controllers.0")["balances"]["0.7"]
    assert (total, count) == (pytest.approx([3 * balance_of(4, 3), 3 * balance_of(3, 3)]), 3)
    for each in (memory, fresh):
        step(each, 3, 0.9, 5, 9)
    assert fresh.settings() == memory.settings()


def test_a_plugin_that_remembers_by_earlier_methods_is_told_the_new_ones():
    class Earlier(Plugin):
        def begin(self):
            return 0

        def after(self, memory, cut):
            return memory + 1

    with pytest.raises(ConfigError, match=r"'controllers.0' \(Earlier\).* 'init_state' and 'update'.*StatefulPlugin"):
        PluginState({"controllers.0": Earlier()})


def test_a_plugin_without_the_base_class_remembers_nothing():
    class Stateless(Plugin):
        def update(self, state, batch):
            raise AssertionError("not asked")

    state = PluginState({"controllers.0": Stateless()})
    state.update(AssembledBatch(BatchRecord("policy", 0, (), (), ()), []))
    assert (state.remembering, state.of("controllers.0")) == ([], None)


def test_multipliers_and_weights_of_the_catalogue():
    assert weights([0.0, 0.0]) == pytest.approx([1 / 3] * 3)
    z = multipliers([0.0], [0.3], [0.1], 1.0)
    assert z == pytest.approx([0.2])
    assert weights(z) == pytest.approx([0.4501660, 0.5498340], abs=1e-7)
    assert weights(multipliers([0.0], [0.05], [0.1], 1.0))[1] < 0.5
    assert sum(weights([800.0, -800.0])) == pytest.approx(1.0)


def test_a_constraint_gains_weight_while_it_is_violated():
    constraint = Constraint(reward="exact", at_most=0.25, key="rewards.1.weight")
    plugin = Lagrangian(constraints=(constraint,), rate=1.0)
    state = plugin.init_state()
    assert plugin.patch(state) == {"rewards.0.weight": 0.5, "rewards.1.weight": -0.5}
    looked_at = (group("a", "b"), [1.0, np.nan]), (group("c", "d", seq=1), [1.0, 0.0])
    state = after(plugin, state, 0, *looked_at)
    assert state == pytest.approx([2 / 3 - 0.25]), "a mean of the three known scores"
    heavier = plugin.patch(state)["rewards.1.weight"]
    assert heavier < -0.5
    assert after(plugin, state, 1) == state, "without a known score nothing moves"
    assert after(plugin, state, 1, (group("a", "b"), [0.0, 0.0])) < state
