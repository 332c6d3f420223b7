"""Whatever a plug-in of the learner's side raises becomes one error that names the plug-in."""

import asyncio

import numpy as np
import pytest

from cluster.config import parse
from cluster.errors import ConfigError, PluginError, calling
from cluster.types import GroupReward, Scores
from learner.plugin_state import PluginState
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.selectors import Selection, Selector
from rewards.aggregation.shaping import Shaper
from rewards.monitors import Monitor
from tests.rewards.groups import group

HERE = "tests.learner.test_plugin_border"


class Mute(Exception):
    def __str__(self):
        raise SystemExit("no words")


RAISED = [
    SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), RecursionError(), KeyError("\ud83d"),
    Mute(), AssertionError("no"), StopIteration(), BaseExceptionGroup("two", [SystemExit(1)]),
]  # fmt: skip


class Raises(Selector):
    which: int

    def select(self, group, scores, mixed):
        raise RAISED[self.which]


class Forgets(Selector):
    def of_step(self, groups, scores, mixed):
        return []


class RaisingShaper(Shaper):
    which: int

    def shape(self, values, group):
        raise RAISED[self.which]


class RaisingMonitor(Monitor):
    which: int

    def measure(self, judged):
        raise RAISED[self.which]


class Remembers:
    def __init__(self, which):
        self._which = which

    def patch(self, memory):
        raise RAISED[self._which]


EACH = pytest.mark.parametrize("which", range(len(RAISED)), ids=[type(e).__name__ for e in RAISED])


@EACH
def test_what_a_selector_raises_names_the_selector(which):
    config = parse({"selectors": [{"use": f"{HERE}:Raises", "options": {"which": which}}]})
    with pytest.raises(PluginError, match=rf"selectors\[0\] \(Raises\) raised {type(RAISED[which]).__name__}"):
        Selection(config.selectors)([group("a")], [{}], [GroupReward(np.ones(1))])


def test_a_selector_that_loses_a_group_is_named():
    config = parse({"selectors": [{"use": f"{HERE}:Forgets"}]})
    with pytest.raises(PluginError, match=r"selectors\[0\] \(Forgets\) returned \[\] for 1 groups"):
        Selection(config.selectors)([group("a")], [{}], [GroupReward(np.ones(1))])


@EACH
def test_what_a_shaper_raises_names_the_shaper_and_its_reward(which):
    shape = {"use": f"{HERE}:RaisingShaper", "options": {"which": which}}
    config = parse({"rewards": [{"use": "exact", "shape": shape}]})
    mixer = Mixer(config.rewards, config.reward_names, 1)
    with pytest.raises(PluginError, match=r"shaper of reward 'exact' \(RaisingShaper\) raised"):
        mixer(group("85"), {"exact": Scores.of([1.0])})


@EACH
def test_what_a_monitor_raises_names_the_monitor(which):
    config = parse({"rewards": [{"use": "exact"}]})
    mixer = Mixer(config.rewards, config.reward_names, 1, [RaisingMonitor(which=which)])
    with pytest.raises(PluginError, match="the monitor RaisingMonitor raised"):
        mixer(group("85"), {"exact": Scores.of([1.0])})


@EACH
def test_what_a_controller_raises_names_the_controller(which):
    with pytest.raises(PluginError, match=r"plug-in 'controllers.0' \(patch\) raised"):
        PluginState({"controllers.0": Remembers(which)}).settings()


def test_errors_of_kanabos_own_and_of_memory_pass_unchanged():
    for error in (ConfigError("mine"), MemoryError()):
        with pytest.raises(type(error)), calling("here"):
            raise error
