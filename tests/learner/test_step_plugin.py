"""Step plug-ins in the loop around a model of one table: which hook is called when, and what each may change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.buffer import Buffer, Limits
from cluster.config import LossSection
from learner.batch import assemble as assembling
from learner.step_plugin import StepPlugin
from learner.train import train
from tests.cluster.pipeline import Pipeline
from tests.learner.groups import each, random_groups, random_rewards, record_of
from tests.learner.runs import run_of
from tests.learner.test_train import TableEngine, Workers, mix, rows, section_of
from tests.learner.test_update import LENGTHS, step
from tests.learner.test_update import section_of as packed

HOOKS = [name for name, value in vars(StepPlugin).items() if callable(value)]


class Journal(StepPlugin):
    """Writes down the hooks in the order of their calls, and what the publisher and the buffer had done by then."""

    def __init__(self, workers: Workers, buffer: Buffer) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self._workers, self._buffer = workers, buffer

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in HOOKS:
            return found

        def noted(*args, **options):
            published = self._workers.events[-1][1] if self._workers.events else -1
            self.calls.append((name, published, self._buffer.status("policy")["version"]))
            return found(*args, **options)

        return noted


@pytest.fixture
def workers(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setattr(assembling, "POLL_S", 0.2)
    return Workers(Pipeline(buffer, Limits(4, max_staleness=1)))


def test_hooks_are_called_in_the_order_of_the_pipeline(buffer, workers):
    journal = Journal(workers, buffer)
    run = run_of(
        section_of(1), buffer, TableEngine(), workers, each(mix), epoch=workers.pipeline.epoch, plugins=[journal]
    )
    assert train(run) == 1
    before = ["before_record", "after_assemble", "configure", "before_step", "before_updates", "before_update"]
    micro = ["on_logprobs", "change_tokens", "loss", "further_losses"]
    # Published and released are versions: everything up to `after_step` happens under the old one.
    expected = [(name, 0, 0) for name in (*before, *micro, "after_step")]
    expected += [("after_release", 1, 1), ("finish", 1, 1)]
    assert journal.calls == expected
    assert {*HOOKS} - {name for name, *_ in journal.calls} == {"save", "load"}, "these two belong to checkpoints"


def test_what_a_plugin_adds_to_the_record_is_what_a_repeated_step_reads(buffer, workers):
    class Adds(StepPlugin):
        def before_record(self, record, groups, considered):
            return replace(record, metrics=record.metrics | {"mine/groups": float(len(groups))})

    class Quiet(StepPlugin):
        def before_record(self, record, groups, considered):
            raise AssertionError("a recorded step is not decided again")

    epoch, parts = workers.pipeline.epoch, (section_of(1), buffer, TableEngine(), workers, each(mix))
    first = run_of(*parts, epoch=epoch, plugins=[Adds()])
    first.publish()
    assert first.assemble() is not None
    again = run_of(*parts, epoch=epoch, plugins=[Quiet()])
    assert train(again) == 1
    (row,) = rows(buffer)
    assert row.metrics["mine/groups"] == 4


def test_a_plugin_configures_a_single_step(buffer, workers):
    class Once(StepPlugin):
        def configure(self, section, batch):
            bonus = LossSection(entropy_coef=0.5 if batch.record.step == 1 else 0.0)
            return section.model_copy(update={"loss": bonus})

        def after_release(self, done, batch):
            workers.sample()
            coefs.append(run.objective.section.loss.entropy_coef)

    coefs: list[float] = []
    run = run_of(
        section_of(3), buffer, TableEngine(), workers, each(mix), epoch=workers.pipeline.epoch, plugins=[Once()]
    )  # fmt: skip
    train(run)
    assert coefs == [0.0, 0.5, 0.0]


def test_losses_of_plugins_add_up_and_their_metrics_are_means_over_tokens():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))

    class Push(StepPlugin):
        """−coef · log π, a mean over trained tokens, in the same pass or in one of its own."""

        def __init__(self, coef: float, *, further: bool = False) -> None:
            self.coef, self.further = coef, further

        def loss(self, update, i, tokens, outputs):
            if self.further:
                return super().loss(update, i, tokens, outputs)
            total = -(outputs.logprobs * tokens.loss_mask).sum()
            return self.coef * total / update.denominator, {"push/nats": total.detach()}

        def further_losses(self, update, micro, engine):
            if self.further:
                mask = torch.as_tensor(micro.loss_mask.copy())
                yield -self.coef * (engine.logprobs(micro)[0] * mask).sum() / update.denominator

    plain, _ = step(packed(), groups, record)
    one, metrics = step(packed(), groups, record, plugins=[Push(0.5)])
    two, _ = step(packed(), groups, record, plugins=[Push(0.2), Push(0.3, further=True)])
    assert metrics["push/nats"] == pytest.approx(np.log(TableEngine().table.shape[1]), rel=1e-5)
    assert (one.table - plain.table).abs().max() > 1e-3
    torch.testing.assert_close(one.table, two.table)


def test_the_policy_loss_sees_the_tokens_that_plugins_make():
    groups = random_groups(LENGTHS)
    record = record_of(groups, random_rewards(groups))

    class Half(StepPlugin):
        def change_tokens(self, update, micro, tokens):
            return replace(tokens, advantages=tokens.advantages / 2)

    whole, _ = step(packed(), groups, record)
    quarter, _ = step(packed(), groups, record, plugins=[Half(), Half()])
    torch.testing.assert_close(quarter.table * 4, whole.table)
