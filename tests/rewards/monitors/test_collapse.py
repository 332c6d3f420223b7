"""The collapse guard alarms on a collapse in time, is silent on a healthy run, and needs no references for either."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.config import RewardSection
from cluster.types import ABSTAINED
from rewards.aggregation.mixer import Mixer
from rewards.base import Services
from rewards.monitors.collapse import CollapseGuard
from rewards.registry import build_reward
from tests.rewards.groups import group

SHARE, ENTROPY = CollapseGuard().reads
STEPS = np.arange(120)


def answered(*answers: str | None):
    made = group(*("" for _ in answers))
    return replace(made, rollouts=tuple(replace(r, answer=a) for r, a in zip(made.rollouts, answers, strict=True)))


def entropy_at(share: np.ndarray, others: int = 6) -> np.ndarray:
    """Of a distribution with `share` on one answer and the rest spread evenly over `others`."""
    rest = np.maximum(1 - share, 1e-9)
    return -share * np.log(share) - rest * np.log(rest / others)


def run(share: np.ndarray, guard: CollapseGuard | None = None, noise: float = 0.0, seed: int = 0) -> list[int]:
    """Steps of the alarms on a curve of the mean majority share."""
    guard = guard or CollapseGuard()
    rng = np.random.default_rng(seed)
    noisy = np.clip(share + rng.normal(0, noise, len(share)), 0.05, 1)
    rows = zip(noisy, entropy_at(noisy), strict=True)
    found = [guard.observe(i, {SHARE: float(s), ENTROPY: float(e)}) for i, (s, e) in enumerate(rows)]
    return [alarm.step for alarm in found if alarm]


COLLAPSES = {
    "fast agreement": 0.66 + 0.33 * (1 - np.exp(-STEPS / 15)),
    "late agreement": 0.66 + 0.33 / (1 + np.exp(-(STEPS - 45) / 6)),
}
ACCURACY = {
    "fast agreement": 0.39 * (1 - STEPS / 119),
    "late agreement": 0.39 / (1 + np.exp((STEPS - 75) / 12)),
}


@pytest.mark.parametrize("curve", COLLAPSES)
@pytest.mark.parametrize("seed", range(5))
def test_a_collapse_is_told_before_a_quarter_of_the_accuracy_is_gone(curve, seed):
    quarter_lost = int(np.argmax(ACCURACY[curve] < 0.75 * 0.39))
    (alarm,) = run(COLLAPSES[curve], noise=0.005, seed=seed)
    assert alarm < quarter_lost


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_raises_no_alarm(seed):
    assert run(0.45 + 0.45 * (1 - np.exp(-STEPS / 40)), noise=0.01, seed=seed) == []
    assert run(np.full(120, 0.9), noise=0.01, seed=seed) == []


def test_one_alarm_per_collapse_and_another_after_recovery():
    collapsed, dip, recovered = np.full(20, 0.97), np.full(3, 0.9), np.full(10, 0.7)
    start = np.full(10, 0.6)
    assert run(np.concatenate([start, collapsed])) == [12]
    assert run(np.concatenate([start, collapsed, dip, collapsed])) == [12], "0.90 is within the hysteresis"
    assert run(np.concatenate([start, collapsed, recovered, collapsed])) == [12, 42]


def test_two_unanimous_steps_are_no_collapse():
    assert run(np.array([0.6] * 10 + [0.97, 0.97, 0.6] * 10)) == []


def test_agreement_from_the_start_is_not_a_fall():
    assert run(np.full(50, 0.97)) == []


def test_agreement_alone_without_a_fall_of_entropy_is_not_enough():
    guard = CollapseGuard()
    assert not any(guard.observe(i, {SHARE: 0.5 if i < 5 else 0.95, ENTROPY: 1.0}) for i in range(30))


def test_rows_without_the_metrics_neither_count_nor_break_a_series():
    guard, alarms = CollapseGuard(), []
    for i, share in enumerate([0.6] * 5 + [0.97] * 3):
        row = {SHARE: share, ENTROPY: float(entropy_at(np.array(share)))}
        for other in ({}, {SHARE: None, ENTROPY: None}, {SHARE: float("nan"), ENTROPY: 0.0}, row):
            alarms.append(guard.observe(i, other))
    assert [a.step for a in alarms if a] == [7]


def test_a_guard_fed_the_old_rows_again_goes_on_where_it_was():
    curve = COLLAPSES["fast agreement"]
    whole, first, second = CollapseGuard(), CollapseGuard(), CollapseGuard()
    rows = [{SHARE: float(s), ENTROPY: float(e)} for s, e in zip(curve, entropy_at(curve), strict=True)]
    expected = [whole.observe(i, r) for i, r in enumerate(rows)]
    for i, r in enumerate(rows[:20]):
        first.observe(i, r)
        second.observe(i, r)
    assert [second.observe(i, r) for i, r in enumerate(rows[20:], 20)] == expected[20:]


def test_the_alarm_says_what_was_seen_and_what_to_do():
    guard = CollapseGuard(patience=1, baseline_steps=1)
    guard.observe(0, {SHARE: 0.5, ENTROPY: 1.0})
    alarm = guard.observe(1, {SHARE: 0.99, ENTROPY: 0.05})
    assert alarm is not None
    assert (alarm.monitor, alarm.step, alarm.metric) == ("collapse", 1, SHARE)
    assert "0.99" in alarm.message
    assert "from 1.00 to 0.05 nats" in alarm.message


@pytest.mark.parametrize(
    ("answers", "entropy", "share"),
    [
        (("1", "1", "1", "1"), 0.0, 1.0),
        (("1", "1", "2", "3"), 1.039721, 0.5),
        (("1", "1", None, None), 0.0, 0.5),
        ((None, None), float("nan"), float("nan")),
        (("85", " 85 "), 0.0, 1.0),
    ],
)
async def test_statistics_of_a_group(answers, entropy, share):
    found = await metrics_of(answered(*answers), "majority", "answer_entropy")
    assert found[ENTROPY] == pytest.approx(entropy, abs=1e-6, nan_ok=True)
    assert found[SHARE] == pytest.approx(share, nan_ok=True)


async def metrics_of(judged, *uses: str) -> dict[str, float]:
    """What the mixer says of rewards that are recorded only."""
    rewards = [RewardSection(use=use, weight=0) for use in uses]
    scores = {use: await build_reward(r, use).score(judged, Services()) for use, r in zip(uses, rewards, strict=True)}
    return Mixer(rewards, uses, 2)(judged, scores).metrics


async def test_without_an_answer_the_entropy_abstains():
    scores = await build_reward(RewardSection(use="answer_entropy"), "r").score(answered("1", None, "1"), Services())
    assert scores.values == pytest.approx([0, float("nan"), 0], nan_ok=True)
    assert scores.state[1] == ABSTAINED


async def test_duplicates_are_texts_seen_before():
    assert (await metrics_of(group("a", "a", "b", "a"), "duplicate"))["reward/duplicate_mean"] == 0.5
    assert (await metrics_of(group("a", "b"), "duplicate"))["reward/duplicate_mean"] == 0


# ── held-out probes ─────────────────────────────────────────────────────────────────────────────────────────────


def probed(name: str, values, guard: CollapseGuard | None = None):
    """The first alarm of a guard that sees a probe every five steps, or None."""
    guard = guard or CollapseGuard()
    alarms = [guard.observe(5 * i, {name: value}) for i, value in enumerate(values)]
    return next((alarm for alarm in alarms if alarm), None)


FALL = [0.51, 0.48, 0.44, 0.44, 0.44, 0.44, 0.42, 0.38, 0.38, 0.37, 0.35]
ANCHORS = [1.0, 0.98, 0.93, 0.93, 0.87, 0.83, 0.81, 0.74, 0.73, 0.70, 0.66]
"""Accuracy and agreement of `methods/collapse.toml` with on_alarm = "warn", every five steps, rounded."""
LEARNT, KEPT = [0.51, 0.58, 0.63, 0.63, 0.66, 0.67, 0.68], [1.0, 0.97, 0.87, 0.84, 0.82, 0.83, 0.84]
"""The same of the quickstart."""


def test_a_fall_of_accuracy_is_told_before_a_quarter_is_gone():
    alarm = probed("eval/accuracy", FALL)
    assert alarm is not None
    assert (alarm.step, alarm.metric, alarm.good) == (15, "eval/accuracy", 0)
    assert FALL[alarm.step // 5] > 0.75 * max(FALL)


def test_without_references_the_anchors_tell_it():
    alarm = probed("eval/anchor_agreement", ANCHORS)
    assert alarm is not None
    assert (alarm.step, alarm.metric, alarm.good) == (40, "eval/anchor_agreement", 15)


def test_learning_is_no_alarm():
    assert probed("eval/accuracy", LEARNT) is None
    assert probed("eval/anchor_agreement", KEPT) is None


@pytest.mark.parametrize(
    ("accuracy", "alarm"), [([0.5, 0.6, 0.7, 0.8], None), ([0.5, 0.6, 0.5, 0.5], 15), ([1.0] * 4, 15), (None, 15)]
)
def test_what_is_given_up_while_the_accuracy_rises_was_wrong(accuracy, alarm):
    guard, found = CollapseGuard(), []
    for i, agreement in enumerate([1.0, 0.9, 0.74, 0.7]):
        row = {"eval/anchor_agreement": agreement} | ({"eval/accuracy": accuracy[i]} if accuracy else {})
        found.append(guard.observe(5 * i, row))
    assert [a.step for a in found if a] == ([] if alarm is None else [alarm])


def test_one_low_probe_is_noise():
    assert probed("eval/accuracy", [0.5, 0.6, 0.4, 0.58, 0.4, 0.6]) is None
    assert probed("eval/accuracy", [0.5, 0.6, 0.4, 0.4]) is not None


def test_a_rising_or_unknown_probe_raises_nothing():
    assert probed("eval/accuracy", [0.5, 0.6, 0.7, 0.75, 0.74, 0.76]) is None
    assert probed("eval/anchor_agreement", [None, float("nan"), None]) is None


@pytest.mark.parametrize(("agreement", "alarms"), [(0.97, 0), (None, 1)])
def test_unanimity_is_no_collapse_while_a_probe_is_near_its_best(agreement, alarms):
    guard, share = CollapseGuard(), COLLAPSES["fast agreement"]
    found = []
    for step, (s, e) in enumerate(zip(share, entropy_at(share), strict=True)):
        found.append(guard.observe(step, {SHARE: float(s), ENTROPY: float(e)}))
        if step % 5 == 0:
            found.append(guard.observe(step, {"eval/anchor_agreement": agreement}))
    assert len([alarm for alarm in found if alarm]) == alarms


def test_equal_texts_are_unanimity_too():
    guard = CollapseGuard()
    rates = [0.5] * 6 + [0.995] * 4
    rows = [{SHARE: 0.5, ENTROPY: 1.0, "reward/duplicate_mean": rate} for rate in rates]
    [alarm] = [a for a in (guard.observe(i, row) for i, row in enumerate(rows)) if a]
    assert (alarm.step, alarm.metric, alarm.good) == (8, "reward/duplicate_mean", 5)


def test_who_repeats_texts_from_the_start_raises_nothing():
    guard = CollapseGuard()
    rows = [{SHARE: 0.5, ENTROPY: 1.0, "reward/duplicate_mean": 0.995}] * 12
    assert not any(guard.observe(i, row) for i, row in enumerate(rows))
