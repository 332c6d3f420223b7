"""Tree searches that values guide: the numbers of their papers' code, and what they find in a planted world."""

from __future__ import annotations

import numpy as np
import pytest

from actors.environments.alpha_search import AlphaSearch, node_reward
from actors.environments.mcts_star import MctsStar
from actors.environments.search import Critic
from actors.environments.tree_statistics import allowance, edit_distance, importance, uct, weighted_value
from cluster.types import Task
from tests.actors.test_search import Ran
from tests.actors.typist import Branching


def test_the_numbers_of_rest_mcts():
    assert uct(0.6, 4, 2, 0.4) == pytest.approx(1.070964, abs=1e-6)
    assert weighted_value([(0.6, 2), (0.2, 1)]) == pytest.approx(0.466667, abs=1e-6)
    assert np.isnan(weighted_value([(0.3, 0)]))


class Counting:
    """A critic: the share of the four steps of the right way, which is all `a`, that a rollout has taken."""

    def __init__(self, *, knows=True):
        self.knows, self.asked = knows, 0

    async def score(self, critic, group):
        self.asked += len(group)
        right = [len(r.text) - len(r.text.lstrip("a")) for r in group.rollouts]
        return np.array(right) / 4 if self.knows else np.full(len(group), np.nan)


class Steps(Branching):
    """Steps of one letter; a response of four letters is over."""

    async def sample(self, prompt, *, max_tokens, **how):
        said = len(prompt) - 2
        sample = await super().sample(prompt, max_tokens=1, **how)
        if said == 4:
            sample.tokens[:] = 0
        return sample if said < 4 else type(sample)(sample.tokens, sample.logprobs, sample.spans, "stop")


TASK = Task.of("t", "?", "aaaa")


async def searched(critics, seed=0, letters="abcd", **options):
    ran = Ran(Steps(letters=letters, seed=seed), critics)
    group = await ran.group(MctsStar(step_tokens=1, size=32, unvisited=0.1, **options), TASK)
    return ran, group


async def test_a_search_that_knows_values_finds_what_sampling_does_not():
    """One way of 256 is right. As many letters as the searches sample are some twenty responses each."""
    found, sampled = 0, 0
    for seed in range(8):
        ran, group = await searched(Counting(), seed=seed, branch=12, iterations=10, end_gate=1.0)
        found += any(r.text == "aaaa" for r in group.rollouts)
        sampled += ran.engine.num_sampled
    assert found >= 6
    assert sampled / 5 / 256 < 1, "by chance all searches together would have found less than one"


class Sure:
    """A critic that likes everything."""

    async def score(self, critic, group):
        return np.full(len(group), 0.95)


async def test_a_selected_leaf_of_high_value_ends_the_search():
    ran, short = await searched(Sure(), iterations=20, end_gate=0.9)
    more, _ = await searched(Sure(), iterations=20, end_gate=2.0)
    assert ran.engine.num_sampled < more.engine.num_sampled / 3
    assert len(short) == 2, "the group has least_ends ends all the same"


async def test_unknown_values_are_the_prior_and_ends_are_ends():
    critics = Counting(knows=False)
    _, group = await searched(critics, iterations=8, prior=0.3)
    assert critics.asked > 0
    assert all(r.tokens[-1] == 0 and r.finish == "stop" for r in group.rollouts)
    known = [n.value for r in group.rollouts for n in r.path if np.isfinite(n.value)]
    assert known == pytest.approx([0.3] * len(known))


async def test_values_of_the_nodes_stay_with_the_rollouts():
    _, group = await searched(Counting(), branch=6, iterations=12, end_gate=1.0)
    values = [r.path[-1].value for r in group.rollouts if np.isfinite(r.path[-1].value)]
    assert values == sorted(values, reverse=True), "the most valued end comes first"
    assert all(0 <= v <= 1 for v in values)


class Filtering(Counting):
    """Values as `Counting`; as a filter it passes steps that end in `a`, and does not know those that end in `d`."""

    async def score(self, critic, group):
        if critic.use != "spc":
            return await super().score(critic, group)
        return np.array([np.nan if r.text.endswith("d") else float(r.text.endswith("a")) for r in group.rollouts])


async def test_a_step_that_the_filter_fails_is_sampled_once_more():
    plain, _ = await searched(Counting(), iterations=4, branch=4, end_gate=2.0)
    ran, group = await searched(Filtering(), iterations=4, branch=4, end_gate=2.0, step_filter=Critic(use="spc"))
    assert plain.engine.num_sampled < ran.engine.num_sampled <= 2 * plain.engine.num_sampled + 10
    assert group.rollouts


# ── AlphaLLM ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_of_alpha_llm():
    assert uct(0.5, 10, 4, 1.0, factor=1.0) == pytest.approx(1.258714, abs=1e-6)
    found = importance([0.9, 0.1, -0.2])
    assert found == pytest.approx(0.633333, abs=1e-6)
    assert [allowance(3, found, kappa) for kappa in (2, 10, 100)] == [3, 6, 10]
    assert node_reward(0.3, [0.8, 0.6, 0.9, 0.7], 0.0) == pytest.approx(1.05, abs=1e-9)
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


JUDGE = Critic(use="judge")


async def alpha(critics=None, letters="abcdefgh", seed=0, **options):
    ran = Ran(Steps(letters=letters, seed=seed), critics or Counting())
    group = await ran.group(AlphaSearch(step_tokens=1, size=32, outcome=JUDGE, **options), TASK)
    return ran, group


async def test_options_that_are_too_near_to_a_sibling_are_sampled_again():
    """Letters differ by one edit: with a distance of 1 the eight children of the root are the eight letters."""
    _, group = await alpha(
        merge_distance=1, merge_attempts=60, root_children=8, children=1, kappa=0, iterations=40, least_terminals=0
    )
    first = [r.text[0] for r in group.rollouts]
    assert sorted(set(first)) == sorted(first), "one child each below the root"
    _, merged = await alpha(merge_distance=0, root_children=8, children=1, kappa=0, iterations=40, least_terminals=0)
    assert len({r.text[0] for r in merged.rollouts}) < len(merged.rollouts)


async def test_the_search_finds_the_way_that_its_critics_like():
    found = 0
    for seed in range(5):
        _, group = await alpha(seed=seed, letters="abcd", merge_distance=1, root_children=4)
        rewards = [r.reward for r in group.rollouts[1:]]
        assert rewards == sorted(rewards, reverse=True)
        found += group.rollouts[0].text == "aaaa"
        assert all(r.tokens[-1] == 0 for r in group.rollouts)
    assert found >= 2, "one way of 256 is right, and 40 ends are less"


async def test_a_search_goes_on_until_it_has_visited_its_ends_and_no_further_than_twice():
    for least, most in ((0, 10), (1000, 20)):
        ran, _ = await alpha(iterations=10, least_terminals=least, fast_rollouts=1, merge_distance=0)
        nodes = ran.progress
        assert most <= nodes <= most * 7, "a node, its score, and at most five steps to an end"


async def test_what_critics_do_not_know_is_a_toss_up():
    _, group = await alpha(Counting(knows=False), iterations=10, least_terminals=0, value=Critic(use="tree_value"))
    assert {r.reward for r in group.rollouts} == {0.5}
