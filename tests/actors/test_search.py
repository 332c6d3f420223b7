"""Searches: trees of token prefixes whose leaves are the rollouts of one group."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from actors.environments.search import Critic, Found, SearchEnvironment
from actors.environments.tree import ResponseTree
from actors.episode import Limits
from actors.search import SearchSampler
from cluster.config import Use
from cluster.errors import ConfigError, DataError, InfrastructureError
from cluster.process.foreign_loops import ForeignLoops
from cluster.types import Claim, Group, Task, decode, encode
from cluster.types.wire import checked_group
from tests.actors.typist import Branching, Letters, Typist

CLAIM = Claim("policy/3/7", "policy", 3, 7, 11, 5, "secret")
TASK = Task.of("t", "a prompt of thirty-two characters", "abc")
LIMITS = Limits(max_tokens=60, max_turns=6, temperature=1.0, environment_timeout_s=5.0)


class Ran:
    """One search on an engine, and how often it made progress."""

    def __init__(self, engine, critics=None, limits=LIMITS):
        self.engine, self.limits, self.progress, self.loops = engine, limits, 0, ForeignLoops()
        self.sampler = SearchSampler(engine, Letters(), 0, critics, self.loops, "policy")

    async def advance(self):
        self.progress += 1

    async def group(self, environment: SearchEnvironment, task: Task = TASK) -> Group:
        try:
            return checked_group(await self.sampler.group(environment, CLAIM, task, self.limits, self.advance))
        finally:
            self.loops.close()


def shared(one, other) -> int:
    return sum(a.id == b.id for a, b in zip(one.path, other.path, strict=True))


async def test_a_tree_of_two_by_three_samples_140_tokens_for_eight_leaves_of_thirty():
    ran = Ran(Branching())
    group = await ran.group(ResponseTree(branching=2, depth=3, step_tokens=10, open_end=False))
    assert [r.num_tokens for r in group.rollouts] == [30] * 8
    assert sum(r.num_tokens for r in group.rollouts) == 240, "as many responses apart"
    assert ran.engine.num_sampled == ran.sampler.take_tokens() == 140
    assert ran.progress == 14, "the claim is renewed at every node"
    pairs = list(combinations(group.rollouts, 2))
    assert len(pairs) == 28
    assert Counter(shared(a, b) for a, b in pairs) == {0: 16, 1: 8, 2: 4}


async def test_leaves_below_one_node_have_its_tokens_and_log_probs_and_no_more_in_common():
    group = await Ran(Branching()).group(ResponseTree(step_tokens=10, open_end=False))
    for a, b in combinations(group.rollouts, 2):
        depth = shared(a, b)
        end = a.path[depth - 1].end if depth else int(np.argmax(a.loss_mask))
        assert np.array_equal(a.tokens[:end], b.tokens[:end])
        assert np.array_equal(a.logprobs[:end], b.logprobs[:end])
        assert not np.array_equal(a.tokens[end:], b.tokens[end:])
    for rollout in group.rollouts:
        assert "".join(node.text for node in rollout.path) == rollout.text
        assert [n.end - 34 for n in rollout.path] == [10, 20, 30]
        assert [(s.version, s.end - s.start) for s in rollout.spans] == [("1.0", 10)] * 3


async def test_the_engine_finds_shared_prefixes_in_its_cache():
    """Each of the 14 extensions is given its node's tokens; only those that no block holds yet are computed."""
    ran = Ran(Branching())
    await ran.group(ResponseTree(step_tokens=10, open_end=False))
    prompt_tokens, cached_tokens = ran.engine.prefixes.take()
    assert prompt_tokens == 2 * 34 + 4 * 44 + 8 * 54
    assert cached_tokens == 4 * 44 + 8 * 52, "all but the two first questions, which are asked at the same time"
    assert ran.engine.prefixes.take() == (0, 0)


async def test_a_response_that_ends_early_is_a_leaf():
    group = await Ran(Branching(ends=15, seed=3)).group(ResponseTree(step_tokens=10, open_end=False))
    assert 2 < len(group) < 8
    ended = [r for r in group.rollouts if r.tokens[-1] == 0]
    assert ended
    assert all(len(r.path) <= 3 and r.finish == "stop" for r in group.rollouts)


async def test_the_last_segment_goes_on_to_the_end_of_the_response():
    group = await Ran(Branching(ends=40, seed=1)).group(ResponseTree(step_tokens=5))
    assert all(r.tokens[-1] == 0 or r.finish == "length" for r in group.rollouts)
    assert max(r.num_tokens for r in group.rollouts) > 15
    cut = await Ran(Branching()).group(ResponseTree(step_tokens=5))
    assert [(r.num_tokens, r.finish) for r in cut.rollouts] == [(60, "length")] * 8, "rollout.max_tokens bounds a turn"


async def test_a_stop_string_ends_a_step_and_stays_in_it():
    group = await Ran(Branching(letters="abcd;")).group(ResponseTree(stop=(";",), step_tokens=None, open_end=False))
    texts = [node.text for r in group.rollouts for node in r.path]
    assert all(t.endswith(";") and ";" not in t[:-1] for t in texts if len(t) < 60)
    assert any(len(t) < 60 for t in texts)


async def test_a_path_travels():
    group = await Ran(Branching()).group(ResponseTree(step_tokens=10, open_end=False))
    again = decode(encode(group), Group)
    assert [[n.id for n in r.path] for r in again.rollouts] == [[n.id for n in r.path] for r in group.rollouts]
    assert np.isnan(again.rollouts[0].path[0].value)


class TwoEnds(SearchEnvironment):
    """Two first steps, each finished once; the second end is worth 7."""

    async def search(self, task, tools):
        steps = await tools.extend(await tools.root(), 2)
        ends = [(await tools.finish(step))[0] for step in steps]
        return [Found(ends[0]), Found(ends[1], reward=7.0, values={steps[1].id: 0.5})]


CALCULATOR = Use(use="calculator")


async def test_steps_are_turns_of_an_environment_which_hears_each_path_from_its_beginning():
    """The first answer to a question is a call, the answer to its result is that result."""
    writes = {"12+34+56=": "[12+34]", "=46;": "[46+56]", "=102;": "102"}
    engine = Typist(lambda seen: writes[seen])
    group = await Ran(engine).group(TwoEnds(inner=CALCULATOR), Task.of("s", "12+34+56=", "102"))
    for rollout in group.rollouts:
        assert rollout.answer == "102"
        assert [t.text for t in rollout.turns] == ["12+34+56=", "[12+34]", "=46;", "[46+56]", "=102;", "102"]
        assert [node.text for node in rollout.path] == ["[12+34]=46;", "[46+56]=102;", "102"]
        assert [e.text for e in rollout.events] == ["call", "call"]
        assert "".join(map(chr, rollout.tokens[rollout.loss_mask])) == "\0".join(("[12+34]", "[46+56]", "102", ""))
    first, second = group.rollouts
    assert np.isnan(first.reward)
    assert second.reward == 7.0
    assert [n.value for n in second.path][:2] == [0.5, pytest.approx(np.nan, nan_ok=True)]


async def test_a_path_without_turns_left_is_cut():
    engine = Typist(lambda seen: "[1+1]")
    limits = Limits(max_tokens=20, max_turns=2, temperature=1.0)
    group = await Ran(engine, limits=limits).group(TwoEnds(inner=CALCULATOR))
    assert [(r.finish, r.answer, len(r.path)) for r in group.rollouts] == [("length", None, 2)] * 2


class Weighed(SearchEnvironment):
    """The better of four first steps, by a critic, finished twice."""

    critic: Critic = Critic(use="exact")

    async def search(self, task, tools):
        steps = await tools.extend(await tools.root(), 4)
        values = await tools.score(steps, self.critic)
        best = steps[int(np.nanargmax(values))]
        return [
            Found(end, values={s.id: v for s, v in zip(steps, values, strict=True)})
            for end in await tools.finish(best, 2)
        ]


class Later:
    """A critic that likes letters late in the alphabet, and saw which unfinished rollouts it was asked about."""

    def __init__(self):
        self.seen = []

    async def score(self, critic, group):
        self.seen += [r.text for r in checked_group(group).rollouts]
        return np.array([max(map(ord, r.text)) if "h" not in r.text else np.nan for r in group.rollouts])


async def test_a_critic_sees_unfinished_rollouts_and_its_values_stay_with_the_nodes():
    critics = Later()
    group = await Ran(Branching(), critics).group(Weighed(step_tokens=3))
    assert len(critics.seen) == 4
    assert all(len(text) == 3 for text in critics.seen)
    known = [t for t in critics.seen if "h" not in t]
    assert {r.text[:3] for r in group.rollouts} == {max(known, key=lambda t: max(map(ord, t)))}
    assert {r.path[0].value for r in group.rollouts} == {max(max(map(ord, t)) for t in known)}


class Misuses(SearchEnvironment):
    how: str

    async def search(self, task, tools):
        root = await tools.root()
        (step,) = await tools.extend(root)
        match self.how:
            case "root":
                return [Found(root)]
            case "twice":
                return [Found(step), Found(step)]
            case "nothing":
                return []
            case "raises":
                raise KeyError("no such branch")
            case "asks":
                return [Found(step, reward=float((await tools.score([step], Critic(use="exact")))[0]))]
        (end,) = await tools.finish(step)
        return [Found((await tools.extend(end))[0])]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("root", "wrote nothing"), ("twice", "each once"), ("nothing", "at least one"), ("raises", "no such branch"),
        ("asks", "asks critics"), ("ended", "nothing follows"),
    ],
)  # fmt: skip
async def test_a_search_that_fails_costs_its_group(how, why):
    with pytest.raises(DataError, match=f"task t: .*{why}"):
        await Ran(Branching(ends=20)).group(Misuses(how=how, step_tokens=4))


async def test_an_engine_that_dies_costs_the_worker():
    class Dies(Branching):
        async def sample(self, prompt, **how):
            raise InfrastructureError("gone")

    with pytest.raises(InfrastructureError, match="gone"):
        await Ran(Dies()).group(ResponseTree())


@pytest.mark.parametrize("inner", ["games", "comas", "tree", "program"])
def test_an_environment_without_one_path_is_refused(inner):
    options = {"command": ["true"]} if inner == "program" else {}
    with pytest.raises(ConfigError, match="cannot be searched"):
        ResponseTree(inner=Use(use=inner, options=options)).check()


def test_a_tree_with_more_leaves_than_its_group_is_refused():
    with pytest.raises(ValueError, match="9 leaves"):
        ResponseTree(branching=3, depth=2)
