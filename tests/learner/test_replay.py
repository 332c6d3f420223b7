"""What a run says when its gradients stop being finite; the whole is tested end to end."""

from __future__ import annotations

import pytest

from cluster.errors import Diverged
from cluster.types import AssembledBatch
from learner.step_replay import StepRecorder
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.learner.test_train import TableEngine

NAN = float("nan")


class Skipping(TableEngine):
    num_skipped = 0


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"loss/ratio_mean": 1.0}, "learner.loss.use = 'mine:Loss' gave nan for finite log-probs"),
        ({"loss/ratio_mean": NAN}, "Usual causes: learner.schedule.lr"),
        ({"loss/ratio_mean": 1.0, "loss/value": NAN}, "Usual causes: learner.schedule.lr"),
    ],
)
def test_a_loss_that_is_not_finite_is_named_where_the_log_probs_are(tmp_path, found, words):
    groups = random_groups([[(1, 2), (1, 2)]])
    cut = AssembledBatch(record_of(groups, random_rewards(groups)), groups)
    engine = Skipping()
    recorder = StepRecorder(tmp_path / "replay", engine, 1, 0, loss="mine:Loss")
    metrics = {"loss/policy": NAN, **found}
    for step in range(2):
        engine.num_skipped += 1
        recorder.after_step(step, cut, metrics)
    engine.num_skipped += 1
    with pytest.raises(Diverged, match=r"3 steps in a row, the last 3, .* --step 3`") as caught:
        recorder.after_step(2, cut, metrics)
    assert words in str(caught.value)
