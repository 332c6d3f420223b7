"""The examples of CONTRIBUTING.md run, and are as short as it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import episode
from actors.engine import Sample
from cluster.config import RunConfig, patched
from cluster.types import AssembledBatch, BatchRecord, Claim, Group, Pair, Rollout, Task, Turn, VersionSpan
from learner.losses.policy_losses import TokenBatch
from learner.plugin_state import PluginState
from rewards.base import Services
from tests.learner.test_terms import sums_of

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = {m[1]: m[2] for m in re.finditer(r"```python\n# (\w+)\n(.*?)```", TEXT, re.S)}


def example(name: str):
    """The class that an example defines."""
    space: dict = {"__name__": "example"}
    exec(EXAMPLES[name], space)
    return next(v for v in space.values() if isinstance(v, type) and v.__module__ == "example")


@pytest.mark.parametrize("name", ["reward", "environment", "loss", "term", "controller"])
def test_an_example_has_about_ten_lines(name):
    lines = [line for line in EXAMPLES[name].splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 10


def rollout(text: str) -> Rollout:
    tokens = np.zeros(2, np.int32)
    turns = (Turn("assistant", 1, 2, text),)
    return Rollout(tokens, tokens > 0, np.zeros(2, np.float32), text, turns, (VersionSpan("1.0", 1, 2),), "stop")


async def test_the_reward_scores_a_group():
    group = Group(Claim("p/1/0", "p", 1, 0, 0, 0, ""), Task.of("t", "say"), (rollout("yes."), rollout("no")))
    services = Services()
    scores = await example("reward")().score(group, services)
    services.close()
    assert scores.values.tolist() == [1.0, 0.0]


class Guesser:
    """Plays upwards from 5."""

    exact, version, max_model_len = True, "1.0", 1000
    guess = 4

    async def sample(self, prompt, *, max_tokens, temperature):
        self.guess += 1
        return Sample(np.array([self.guess, 0], np.int32), np.zeros(2, np.float32), (), "stop")


class Letters:
    """Token ids are what they say."""

    stop_tokens = (0,)

    def prompt(self, messages, tools=()):
        return [100]

    def observation(self, messages, *, after, tools=()):
        return [101]

    def opened(self, messages, *, first=True, tools=()):
        return ""

    def stopped_at(self, tokens):
        return None

    def text(self, tokens):
        return "".join(str(t) for t in tokens if t)


async def test_the_environment_plays_until_the_guess_is_right():
    task = Task.of("t", "guess", "7")
    limits = episode.Limits(max_tokens=10, max_turns=10, temperature=1.0)
    played = await episode.play(Guesser(), Letters(), example("environment")(), task, "orig", limits)
    assert played.reward == 1.0
    assert played.finish == "stop"
    assert [t.text for t in played.turns] == ["guess", "5", "higher", "6", "higher", "7"]
    assert played.tokens.tolist() == [100, 5, 0, 101, 6, 0, 101, 7, 0]
    short = await episode.play(
        Guesser(), Letters(), example("environment")(), task, "orig", replace(limits, max_turns=2)
    )
    assert short.finish == "length"
    assert np.isnan(short.reward)


def test_the_loss_has_the_policy_gradient():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True]])
    advantages = torch.tensor([[7.0, 0.5, -1.0]])
    none = torch.zeros(1, 3, dtype=torch.int64)
    loss, _ = example("loss")().loss(
        logprobs, TokenBatch(mask, mask.float(), torch.zeros(1, 3), advantages, none, none)
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 2 + -1.0 * 3)
    assert logprobs.grad.tolist() == [[0.0, -0.5, 1.0]]


def test_the_term_wants_a_margin():
    sums = sums_of([0.25, 0.0], [0.0, 0.0], [Pair(0, 1)])
    loss, _ = example("term")().loss(sums)
    assert loss.item() == pytest.approx(0.75)
    (gradient,) = torch.autograd.grad(loss, [sums.logprobs])
    assert gradient.tolist() == [-1.0, 1.0]


def test_the_controller_cools_the_sampling_down_and_says_so():
    controller = example("controller")(rate=0.8)
    memory = PluginState({"controllers.0": controller})
    found = []
    for step in range(5):
        found.append(memory.settings()["rollout.temperature"])
        memory.update(AssembledBatch(BatchRecord("policy", step, (), (), ()), []))
    assert found == pytest.approx([1.0, 0.8, 0.64, 0.512, 0.5])
    assert patched(RunConfig(), memory.settings()).rollout.temperature == 0.5
    assert controller.metrics(0.7) == {"settings/rollout.temperature": 0.7}
