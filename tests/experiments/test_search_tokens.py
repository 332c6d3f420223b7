"""The comparison of search and best of N, on a stand-in for the engine whose right way is known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from actors.environments.mcts_star import MctsStar
from actors.episode import Limits
from cluster.config import Use
from cluster.types import Task
from tests.actors.typist import Branching, Letters
from tests.experiments.search_tokens import Bench, Spent, summary

LIMITS = Limits(max_tokens=20, max_turns=4, temperature=1.0)
SUMS = [(17, 25, 31), (40, 12, 9), (55, 3, 27)]
TASKS = [Task.of(f"{a}+{b}+{c}", f"{a}+{b}+{c}=", str(a + b + c)) for a, b, c in SUMS]


class Guesses(Branching):
    """Calls the calculator for the right sum with one chance in four, else for one that is a little off."""

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.chance = random.Random(seed)

    async def sample(self, prompt, *, max_tokens, temperature, stop_tokens=()):
        text = "".join(map(chr, prompt)).split("\x02")
        question, seen = text[1], text[-1]
        a, b, c = map(int, question.partition("=")[0].split("+"))
        off = 0 if self.chance.random() < 0.25 else self.chance.randint(1, 9)
        if len(text) == 2:
            said = f"[{a + off}+{b}]"
        elif len(text) == 3:
            said = f"[{seen.strip('=;')}+{c + off}]"
        else:
            said = seen.strip("=;")
        sample = await super().sample(prompt, max_tokens=1, temperature=temperature)
        ids = np.array([*map(ord, said), 0], np.int32)
        span = type(sample.spans[0])("1.0", 0, len(ids))
        return type(sample)(ids, np.zeros(len(ids), np.float32), (span,), "stop")


class Knows:
    """A value model that works the sum out: 1 minus a tenth for each wrong step."""

    def predict(self, texts):
        found = []
        for text in texts:
            question, _, written = text.partition("\n> ")
            a, b, c = map(int, question.rstrip("=").split("+"))
            right = (f"[{a}+{b}]" in written) + (f"+{c}]" in written)
            found.append(right / 2)
        return np.array(found)


@pytest.fixture
def bench():
    environment = MctsStar(inner=Use(use="calculator"), branch=6, iterations=6, end_gate=0.99, size=16)
    made = Bench(Guesses(), Letters(), environment, LIMITS)
    yield made
    made.close()


async def test_both_ways_spend_the_same_and_the_search_is_right_more_often(bench):
    pairs = await bench.compared(TASKS * 6, Knows())
    found = summary(pairs)
    for search, best in pairs:
        assert search.tokens <= best.tokens < search.tokens + 25, "one episode more at most"
    assert found["search"]["right"] > found["best_of_n"]["right"]
    assert found["search_alone"] > found["best_of_n_alone"]


async def test_trees_label_their_nodes_for_the_value_model(bench):
    labels = await bench.labels(TASKS * 3)
    assert labels
    assert all(0 <= value <= 1 for value in labels.values())
    right = [value for key, value in labels.items() if key.endswith("[17+25]=42;")]
    wrong = [value for key, value in labels.items() if "17+25+31=\n> [" in key and "> [17+25]" not in key]
    assert not right or not wrong or np.mean(right) > np.mean(wrong)


def test_shares_are_over_tasks():
    one, other = Spent(True, True, 30, 3), Spent(False, True, 40, 5)
    found = summary([(one, other), (one, one)])
    assert found["search"]["right"] == 1.0
    assert found["best_of_n"] == {"right": 0.5, "any_right": 1.0, "tokens": 35.0, "ends": 4.0}
    assert (found["search_alone"], found["best_of_n_alone"]) == (1, 0)
