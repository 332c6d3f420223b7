"""The loop around a model of one table: what it calls, in which order, and that reward rises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.buffer import Buffer, Limits
from cluster.config import CorrectionSection, LearnerSection, LossSection, ScheduleSection, Use
from cluster.errors import PluginError
from cluster.types import AssembledBatch, Group, GroupReward, Rollout, Scores
from cluster.types.events import StepTaken
from learner.batch import assemble as assembling
from learner.pack import pack
from learner.step_plugin import StepPlugin
from learner.train import Objective, optimize, train
from tests.cluster.pipeline import Pipeline
from tests.learner.groups import VOCABULARY, bigram_logprobs, each, group, random_groups, random_rewards, record_of
from tests.learner.runs import Calls, run_of

GOOD = 3
"""The token that is rewarded."""


class TableEngine:
    """`Engine` of one rank: a [V, V] table of bigram logits under SGD."""

    def __init__(self, lr: float = 20.0) -> None:
        self.table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
        self.rank, self.world, self.step, self.lr = 0, 1, 0, lr

    def logprobs(self, micro) -> tuple[torch.Tensor, torch.Tensor]:
        return bigram_logprobs(self.table)(micro)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def optimizer_step(self, *, final: bool = True) -> dict[str, float]:
        assert self.table.grad is not None
        with torch.no_grad():
            self.table -= self.lr * self.table.grad
        self.table.grad = None
        self.step += final
        return {"learner/grad_norm": 1.0}

    def skip_step(self) -> None:
        self.step += 1

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "table", self.table.detach()

    def agree(self, flag: bool) -> bool:
        return flag

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(values)

    def barrier(self) -> None: ...
    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...
    def export(self, directory: Path) -> None: ...


@dataclass
class Workers:
    """A publisher whose engines fill the buffer as soon as they have the weights."""

    pipeline: Pipeline
    events: list[tuple[str, int]] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    refill: bool = True

    def publish(self, engine: Any, step: int) -> None:
        self.pipeline.step = step
        self.pipeline.publish()
        self.events.append(("publish", step))
        if self.refill:
            self.table = dict(engine.weights())["table"].clone()
            self.sample()

    def sample(self, *_: Any) -> None:
        for claim in self.pipeline.claim_all():
            rollouts = [self._rollout() for _ in range(8)]
            self.pipeline.buffer.put(Group(claim, group(claim.seq, rollouts).task, tuple(rollouts)))

    def _rollout(self) -> Rollout:
        tokens, logprobs = [0], [0.0]
        for _ in range(3):
            log_softmax = self.table[tokens[-1]].log_softmax(-1)
            tokens.append(int(torch.multinomial(log_softmax.exp(), 1, generator=self.generator)))
            logprobs.append(float(log_softmax[tokens[-1]]))
        arrays = np.array(tokens, np.int32), np.array([False, True, True, True]), np.array(logprobs, np.float32)
        return Rollout(*arrays, text="", turns=(), spans=(), finish="stop")


def mix(found: Group, scores: dict[str, Scores]) -> GroupReward:
    return GroupReward(np.array([float((r.tokens == GOOD).mean()) for r in found.rollouts]))


def section_of(steps: int, **fields: Any) -> LearnerSection:
    # No refills: these workers sample between steps, not while the learner waits.
    return LearnerSection(steps=steps, groups_per_step=4, max_refills=0, schedule=ScheduleSection(lr=1.0), **fields)


@pytest.fixture
def workers(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(assembling, "POLL_S", 0.2)
    return Workers(Pipeline(buffer, Limits(4, max_staleness=1)))


def run(workers: Workers, section: LearnerSection, engine: TableEngine, **hooks: Any) -> int:
    pipeline = workers.pipeline
    fields = {"stop": hooks.pop("stop")} if "stop" in hooks else {}
    plugins = [Calls(**hooks)]
    return train(
        run_of(section, pipeline.buffer, engine, workers, each(mix), epoch=pipeline.epoch, plugins=plugins, **fields)
    )


def rows(buffer: Buffer) -> list[StepTaken]:
    return [event for _, event in buffer.events() if isinstance(event, StepTaken)]


def test_reward_rises_and_no_group_is_lost_or_stale(buffer, workers):
    engine = TableEngine()
    assert run(workers, section_of(12), engine, at_step=workers.sample) == 12
    rewards = [row.metrics["reward/mean"] for row in rows(buffer)]
    assert np.mean(rewards[-3:]) > 2 * np.mean(rewards[:3])
    summary = buffer.summary("policy")
    assert (summary["groups_lost"], summary["groups_trained_twice"]) == (0, 0)
    assert summary["max_staleness_observed"] <= 1


def test_a_row_of_metrics_says_what_the_step_did_and_waited_for(buffer, workers):
    run(workers, section_of(1), TableEngine())
    (row,) = rows(buffer)
    assert (row.policy, row.epoch, row.step) == ("policy", workers.pipeline.epoch, 1)
    metrics = row.metrics
    assert metrics["loss/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["loss/entropy_nats"] == pytest.approx(np.log(VOCABULARY), abs=1e-5)
    assert metrics["learner/tokens"] == 3 * metrics["learner/rollouts"]
    assert 0 <= metrics["learner/wait_s"] <= metrics["learner/step_s"]
    assert all(np.isfinite(v) for v in metrics.values())


def test_a_broken_advantage_trains_nothing_and_is_not_recorded(buffer, workers):
    section = section_of(2, advantage=Use(use="tests.fakes:Forgetful"))
    with pytest.raises(
        PluginError, match=r"'tests.fakes:Forgetful', group policy/\d+/\d+, rollout 7: the advantage is nan"
    ):
        run(workers, section, TableEngine())
    assert buffer.recorded("policy", 0) is None
    assert rows(buffer) == []


def test_a_stop_finishes_the_step_under_way_and_cuts_no_more(buffer, workers):
    done: list[int] = []

    def at_step(step: int, cut: AssembledBatch) -> None:
        workers.sample()
        done.append(step)

    assert run(workers, section_of(10), TableEngine(), at_step=at_step, stop=lambda: len(done) == 2) == 2
    assert buffer.recorded("policy", 2) is None


def test_a_stop_while_waiting_for_groups_is_heard(buffer, workers):
    workers.refill = False
    asked = iter([False, False, True])
    assert run(workers, section_of(10), TableEngine(), stop=lambda: next(asked)) == 0


def test_checkpoints_come_after_release_and_before_the_next_batch(buffer, workers):
    seen = []

    def checkpoint(step: int) -> None:
        seen.append((step, buffer.status("policy")["version"], buffer.recorded("policy", step)))
        workers.events.append(("checkpoint", step))

    run(workers, section_of(2), TableEngine(), checkpoint=checkpoint, at_step=workers.sample)
    assert seen == [(1, 1, None), (2, 2, None)]
    assert workers.events == [("publish", 0), ("publish", 1), ("checkpoint", 1), ("publish", 2), ("checkpoint", 2)]


def test_an_empty_cut_moves_the_version_and_not_the_weights(buffer, workers):
    engine = TableEngine()

    def no_reward(found: Group, scores: dict[str, Scores]) -> GroupReward:
        return GroupReward(np.full(len(found), np.nan))

    pipeline = workers.pipeline
    section = section_of(2)
    plugins = [Calls(at_step=workers.sample)]
    assert train(run_of(section, buffer, engine, workers, each(no_reward), epoch=pipeline.epoch, plugins=plugins)) == 2
    assert not engine.table.any()
    assert buffer.status("policy")["version"] == 2
    assert [row.metrics["learner/num_empty_steps"] for row in rows(buffer)] == [1.0, 1.0]


def step_of(
    lengths: list[tuple[int, int]], loss: LossSection, *, versions: tuple[int, ...] = (0,)
) -> tuple[torch.Tensor, dict]:
    """What one step at rate 1 adds to the table, and its metrics; one group of these lengths a version."""
    groups = random_groups([lengths] * len(versions))
    groups = [replace(g, claim=replace(g.claim, version=v)) for g, v in zip(groups, versions, strict=True)]
    section, engine = LearnerSection(loss=loss, row_tokens=8, micro_tokens=16), TableEngine(lr=1.0)
    batch = pack(groups, record_of(groups, random_rewards(groups)), section)
    metrics = optimize(batch, Objective.of(section), engine)
    return engine.table.detach(), metrics


def test_a_constant_per_rollout_divides_the_sum_of_tokens_whatever_their_number():
    lengths = [(2, 3), (1, 9), (4, 1)]
    by_token, _ = step_of(lengths, LossSection())
    by_constant, metrics = step_of(lengths, LossSection(aggregate="constant", constant_tokens=20))
    assert by_token.abs().max() > 1e-3
    torch.testing.assert_close(by_constant * (3 * 20), by_token * 13)
    assert metrics["loss/policy"] * 60 == pytest.approx(step_of(lengths, LossSection())[1]["loss/policy"] * 13)


def test_with_equal_lengths_all_aggregates_are_one():
    lengths = [(2, 4), (1, 4), (4, 4)]
    by_token, _ = step_of(lengths, LossSection())
    for loss in (LossSection(aggregate="sequence"), LossSection(aggregate="constant", constant_tokens=4)):
        torch.testing.assert_close(step_of(lengths, loss)[0], by_token)


@pytest.mark.parametrize(("version", "known", "unknown"), [(0, "mismatch", "staleness"), (-1, "staleness", "mismatch")])
def test_mismatch_and_staleness_are_means_over_their_own_tokens_or_not_known(version, known, unknown):
    correction = CorrectionSection(high=1e-9)
    loss = LossSection(mismatch=correction, staleness=correction)
    _, metrics = step_of([(2, 4), (1, 7)], loss, versions=(version,))
    assert metrics[f"policy/{known}_kl_nats"] == pytest.approx(metrics["policy/behaviour_kl_nats"])
    assert metrics[f"loss/{known}_bound_frac"] == 1.0
    assert f"policy/{unknown}_kl_nats" not in metrics
    assert f"loss/{unknown}_bound_frac" not in metrics


def test_mismatch_and_staleness_add_up_to_the_whole_divergence():
    _, metrics = step_of([(2, 4), (1, 7)], LossSection(), versions=(0, -1, -1))
    assert metrics["policy/stale_frac"] == pytest.approx(2 / 3)
    whole = (metrics["policy/mismatch_kl_nats"] + 2 * metrics["policy/staleness_kl_nats"]) / 3
    assert whole == pytest.approx(metrics["policy/behaviour_kl_nats"])
    assert metrics["policy/mismatch_kl_nats"] != pytest.approx(metrics["policy/staleness_kl_nats"], abs=1e-3)


def test_tokens_of_this_epoch_and_step_are_fresh(buffer, workers):
    run(workers, section_of(1), TableEngine())
    (row,) = rows(buffer)
    assert row.metrics["policy/stale_frac"] == 0
    assert row.metrics["policy/mismatch_kl_nats"] == pytest.approx(0.0, abs=1e-6)


class CountingEngine(TableEngine):
    """Counts passes without gradient, and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = self.gradients = 0

    def logprobs(self, micro) -> tuple[torch.Tensor, torch.Tensor]:
        self.looks += not torch.is_grad_enabled()
        return super().logprobs(micro)

    def backward(self, loss: torch.Tensor) -> None:
        self.gradients += 1
        super().backward(loss)


class Pulling(StepPlugin):
    """A loss of its own on every token."""

    def loss(self, update, i, tokens, outputs):
        return outputs.logprobs.sum(), {}


@pytest.mark.parametrize(
    ("loss", "plugins", "skips"),
    [
        (LossSection(), [], True),
        (LossSection(use="gspo", aggregate="sequence"), [StepPlugin()], True),
        (LossSection(entropy_coef=0.1), [], False),
        (LossSection(kl_coef=0.1), [], False),
        (LossSection(use="turnwise_reinforce"), [], False),
        (LossSection(), [Pulling()], False),
    ],
)
def test_rollouts_without_advantage_have_a_gradient_only_where_something_else_acts_on_them(loss, plugins, skips):
    groups = random_groups([[(3, 4), (2, 6)], [(3, 5), (2, 9)]])
    section = LearnerSection(loss=loss, micro_tokens=20)
    batch = pack(groups, record_of(groups, [np.array([1.0, 0.0]), np.array([0.5, 0.5])]), section)
    assert [m.idle for m in batch.micros] == [False, True]
    found = []
    for idle in (True, False):
        micros = tuple(replace(m, idle=m.idle and idle) for m in batch.micros)
        engine: Any = CountingEngine()
        metrics = optimize(replace(batch, micros=micros), Objective.of(section), engine, plugins=plugins)
        assert (engine.looks, engine.gradients) == ((1, 1) if skips and idle else (0, 2))
        found.append((engine.table.detach(), metrics))
    assert found[0][0].abs().max() > 0
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)
