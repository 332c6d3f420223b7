"""A recipe's monitors see every row that is written, warn or stop, and a blind one is refused."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import PrivateAttr

from cluster.buffer import Limits
from cluster.config import RunConfig, parse
from cluster.driver import preflight
from cluster.driver.event_consumer import EventConsumer
from cluster.errors import ConfigError
from cluster.observability import metrics
from cluster.observability.alarm_report import Alarmed
from cluster.observability.live_table import LiveTable
from cluster.types.events import StepTaken
from rewards.monitors import Alarm, Monitor, build_monitors
from tests.cluster.pipeline import Pipeline


class ThirdTime(Monitor):
    """Alarms at the third measurement of accuracy."""

    _count: int = PrivateAttr(default=0)

    def observe(self, step, row):
        self._count += "eval/accuracy" in row
        due = self._count == 3 and "eval/accuracy" in row
        return Alarm("third", step, "eval/accuracy", "three are enough.") if due else None


def recipe(**monitor: Any) -> RunConfig:
    return parse({"monitors": [{"use": f"{__name__}:ThirdTime", **monitor}], "tracking": {"tensorboard": False}})


@pytest.fixture
def follow(tmp_path):
    def start(config: RunConfig) -> EventConsumer:
        recorder = metrics.Recorder(tmp_path, config.tracking, "run", {})
        nothing: Any = SimpleNamespace()  # a follower of evaluations needs neither events nor a table
        return EventConsumer(nothing, config, recorder, nothing, lambda step: None)

    return start


def alarms(directory) -> list[int]:
    return [row["step"] for row in metrics.read(directory) if "monitor/third_alarms" in row]


def test_an_alarm_is_logged_and_recorded(follow, tmp_path, caplog):
    follower = follow(recipe())
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            follower.evaluated(step, 0.5, 1.0, 1.0)
    assert alarms(tmp_path) == [2]
    assert caplog.messages == ["third at step 2: three are enough."]


def test_on_alarm_stop_ends_the_run_after_its_row_is_written(follow, tmp_path):
    follower = follow(recipe(on_alarm="stop"))
    follower.evaluated(0, 0.5, 1.0, 1.0)
    follower.evaluated(1, 0.5, 1.0, 1.0)
    with pytest.raises(Alarmed, match=r"three are enough.*on_alarm = 'stop'"):
        follower.evaluated(2, 0.25, 1.0, 1.0)
    assert [r["eval/accuracy"] for r in metrics.read(tmp_path) if "eval/accuracy" in r] == [0.5, 0.5, 0.25]
    assert alarms(tmp_path) == [2]


def test_after_a_resume_a_monitor_is_where_it_was(follow, tmp_path):
    before = follow(recipe())
    before.evaluated(0, 0.5, 1.0, 1.0)
    before.evaluated(1, 0.5, 1.0, 1.0)
    follow(recipe()).evaluated(2, 0.5, 1.0, 1.0)
    assert alarms(tmp_path) == [2]


async def test_every_step_of_the_learner_is_watched(buffer, tmp_path):
    curve = [0.6] * 6 + [0.97] * 4
    settings = parse(
        {
            "rewards": [{"use": "majority"}, {"use": "answer_entropy", "weight": 0}],
            "monitors": [{"use": "collapse"}],
            "tracking": {"tensorboard": False},
        }
    )
    recorder = metrics.Recorder(tmp_path, settings.tracking, "run", {})
    follower = EventConsumer(buffer, settings, recorder, LiveTable("run", 1, False), lambda step: None)
    epoch = Pipeline(buffer, Limits(2, 1)).epoch
    follower.new_epoch(epoch, 0)
    for step, share in enumerate(curve):
        seen = {"reward/majority_mean": share, "reward/answer_entropy_mean": 2 * (1 - share)}
        buffer.emit(StepTaken(policy="policy", epoch=epoch, step=step, metrics=seen))
    await follower.drain()
    assert [r["step"] for r in metrics.read(tmp_path) if "monitor/collapse_alarms" in r] == [8]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"monitors": [{"use": "collapse"}]}, r"monitors\[0\].*no reward is called 'majority'.*weight = 0"),
        (
            {"rewards": [{"use": "majority"}], "monitors": [{"use": "collapse"}]},
            "no reward is called 'answer_entropy'",
        ),
        ({"monitors": [{"use": "over_optimisation"}]}, r"monitors\[0\] reads 'loss/kl_nats'.*kl_coef = 0"),
        ({"monitors": [{"use": "colapse"}]}, "Did you mean 'collapse'"),
        ({"monitors": [{"use": "collapse", "options": {"patience": 0}}]}, "patience"),
    ],
)
def test_a_blind_or_unknown_monitor_is_refused_before_anything_starts(more, words):
    with pytest.raises(ConfigError, match=words):
        preflight.plugins(parse(more))


def test_a_seeing_one_is_not():
    rewards = [{"use": "majority"}, {"use": "answer_entropy", "weight": 0}]
    monitors = [{"use": "collapse"}, {"use": "over_optimisation"}]
    settings = parse({"rewards": rewards, "monitors": monitors, "learner": {"loss": {"kl_coef": 0.01}}})
    assert [type(m).__name__ for m in build_monitors(settings)] == ["CollapseGuard", "OverOptimisation"]
