"""Selectors, pairs, terms and step-wide shaping in the pipeline around a model of one table: what each changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cluster.buffer import Buffer, Limits
from cluster.config import (
    LearnerSection,
    LossSection,
    RewardSection,
    ScheduleSection,
    SelectorSection,
    SequenceLossSection,
    Use,
)
from cluster.types import Group, Scores
from cluster.types.events import StepTaken
from learner.batch import assemble as assembling
from learner.train import train
from learner.types import Mix
from rewards.aggregation.mixer import Mixer
from rewards.aggregation.selectors import Selection
from tests.cluster.pipeline import Pipeline
from tests.learner.groups import bigram_logprobs
from tests.learner.runs import Calls, run_of
from tests.learner.test_train import GOOD, TableEngine, Workers

STEPS = 4
GOODS = RewardSection(use="exact", name="goods")
"""How often the good token was written; scored when a batch is cut, as a stored score would be."""


def scored(groups: Sequence[Group]) -> list[dict[str, Scores]]:
    goods = [np.array([float((r.tokens == GOOD).mean()) for r in g.rollouts]) for g in groups]
    return [{"goods": Scores.of(v), "bads": Scores.of(-v)} for v in goods]


class Frozen:
    """The table as it was at first."""

    def logprobs(self, micro: Any) -> torch.Tensor:
        return bigram_logprobs(TableEngine().table.detach())(micro)[0]


@pytest.fixture
def workers(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(assembling, "POLL_S", 0.2)
    return Workers(Pipeline(buffer, Limits(4, max_staleness=1)))


def pipeline(
    workers: Workers,
    *,
    selectors: Sequence[SelectorSection] = (),
    rewards: Sequence[RewardSection] = (GOODS,),
    lr: float = 20.0,
    stop: Any = lambda: False,
    **fields: Any,
) -> tuple[TableEngine, list[dict[str, float]]]:
    """Train for some steps on what the table samples; the table and the steps' metrics."""
    section = LearnerSection(
        **{"steps": STEPS, "groups_per_step": 4, "max_refills": 0, "schedule": ScheduleSection(lr=1.0), **fields}
    )
    mixer = Mixer(rewards, [r.name for r in rewards], 1)
    selection = Selection(selectors) if selectors else None
    engine, buffer = TableEngine(lr), workers.pipeline.buffer
    mix: Mix = lambda groups, _: mixer.of_step(groups, scored(groups))  # noqa: E731

    def select(groups: Any, _: Any, mixed: Any) -> Any:
        return selection(groups, scored(groups), mixed) if selection else mixed

    train(
        run_of(
            section, buffer, engine, workers, mix, epoch=workers.pipeline.epoch, select=select, reference=Frozen(),
            plugins=[Calls(at_step=workers.sample)], stop=stop,
        )
    )  # fmt: skip
    rows = [event.metrics for _, event in buffer.events() if isinstance(event, StepTaken)]
    summary = buffer.summary("policy")
    assert (len(rows), summary["groups_lost"], summary["groups_trained_twice"]) == (section.steps, 0, 0)
    return engine, rows


def probability_of_good(engine: TableEngine) -> float:
    return float(engine.table.detach().softmax(-1)[:, GOOD].mean())


ALONE = LossSection(coef=0.0)
PAIRED = (SelectorSection(use="best_worst"),)
DPO = SequenceLossSection(use="dpo", options={"beta": 0.5})


def test_preferences_alone_make_the_preferred_likelier(workers):
    engine, rows = pipeline(workers, selectors=PAIRED, loss=ALONE, sequence_losses=(DPO,))
    assert rows[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6), "at first the policy is the reference"
    assert all(r["learner/rollouts"] <= 2 * r["pairs/num_pairs"] for r in rows), "only pairs are run"
    assert rows[-1]["loss/dpo"] < rows[0]["loss/dpo"]
    assert rows[-1]["pairs/accuracy"] > 0.5
    assert probability_of_good(engine) > 1.2 / 11


def test_both_kinds_of_loss_go_further_than_one(workers, redis_url):
    engine, rows = pipeline(workers, selectors=PAIRED, sequence_losses=(DPO,), lr=2.0)
    assert all(r["learner/rollouts"] > 2 * r["pairs/num_pairs"] for r in rows)
    other = Workers(Pipeline(Buffer(redis_url, "test-gradient-alone"), Limits(4, max_staleness=1)))
    alone, _ = pipeline(other, lr=2.0)
    assert probability_of_good(engine) > probability_of_good(alone) > 1 / 11


def test_selm_takes_probability_from_its_third(workers):
    selectors = (*PAIRED, SelectorSection(use="likeliest"))
    _, rows = pipeline(
        workers,
        selectors=selectors,
        loss=ALONE,
        sequence_losses=(SequenceLossSection(use="selm", options={"beta": 1.0}),),
    )
    ratios = [r["selm/third_log_ratio_nats"] for r in rows]
    assert ratios[0] == pytest.approx(0, abs=1e-6)
    assert ratios[-1] < -0.1


def test_cream_learns_nothing_from_half_and_the_reverse_from_full_disagreement(workers):
    options = {"first": "goods", "second": "bads"}
    against, rows = pipeline(
        workers, selectors=(SelectorSection(use="consistency", options=options),), loss=ALONE, sequence_losses=(DPO,)
    )
    assert [r["pairs/label_mean"] for r in rows] == [0.0] * STEPS
    assert probability_of_good(against) < 0.9 / 11


def test_dno_needs_no_reference_model_and_large_margins(workers):
    options = {"floor": 0.5, "margin": 0.5, "student_margin": 0.5}
    dno = SequenceLossSection(use="dpo", options={"beta": 0.5, "against": "behaviour"})
    _, rows = pipeline(
        workers,
        selectors=(SelectorSection(use="large_margin", options=options),),
        loss=ALONE,
        sequence_losses=(dno,),
        steps=3,
    )
    assert all(r["learner/groups"] < 4 for r in rows), "few groups of a policy that guesses hold such a pair"
    assert any(r.get("buffer/num_dropped_no_pairs", 0) > 0 for r in rows)
    assert all(r["pairs/margin_mean"] >= 0.5 for r in rows if r["pairs/num_pairs"])


def test_laser_learns_to_call_right_what_is_right(workers):
    """Right is a rollout with the good token; the token behind the end sees the last one only."""
    options = {"token": 7, "correct": 0.2, "beta": 0.5, "reference_logprob": 0, "mix_after_steps": 2, "min_std": 1e-9}
    laser = SequenceLossSection(use="laser", options=options)
    _, rows = pipeline(workers, loss=ALONE, sequence_losses=(laser,), steps=6)
    losses = [r["loss/laser"] for r in rows]
    assert losses[0] == pytest.approx(0.5, abs=1e-6), "a self-reward of 0: right ones are off by 1, wrong ones by 0"
    assert losses[-1] < losses[0] - 0.05, losses


def test_best_of_n_alone_makes_the_best_likelier(workers):
    engine, rows = pipeline(
        workers,
        selectors=(SelectorSection(use="best"),),
        loss=ALONE,
        sequence_losses=(SequenceLossSection(use="nll"),),
        lr=5.0,
    )
    assert all(r["learner/rollouts"] == r["learner/groups"] for r in rows)
    assert probability_of_good(engine) > 1.2 / 11


def test_a_step_presses_one_of_its_four_groups_for_brevity(workers):
    """GRPO-λ where all are right: the pressed group's rollouts are equally long, so each is worth 1 − α / 2."""
    options = {"correct": 0.0, "top_frac": 0.25, "alpha": 0.5}
    shaped = GOODS.model_copy(update={"shape": Use(use="step_length_switch", options=options)})
    _, rows = pipeline(workers, rewards=(shaped,), drop_zero_variance=False, steps=3)
    assert [r["reward/goods_shaped_mean"] for r in rows] == pytest.approx([(0.75 + 3) / 4] * 3)
