"""A reference that is an alias: it is what the alias names, moves with the checkpoints, and a resume finds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config import parse
from cluster.storage import checkpoint
from cluster.types import Manifest
from learner.pack import pack
from learner.reference import Following, Reference, reference_of
from tests.learner.groups import random_groups, random_rewards, record_of
from tests.models import random_llama

DPO = {"loss": {"coef": 0}, "sequence_losses": [{"use": "dpo"}]}
ENGINE: Any = SimpleNamespace(device="cpu")


def saved(run: Path, step: int, rounds: int, *, scheduled: bool = True) -> Path:
    target = random_llama(run / "checkpoints" / f"global_step_{step}", tied=True, seed=step)
    checkpoint.commit(target, Manifest("policy", step, 1, 0, (), (), (), scheduled, rounds))
    return target


@pytest.mark.parametrize(("alias", "behind"), [("previous", 1), ("previous@2", 2), ("previous@3", 3)])
def test_it_moves_with_the_checkpoints_and_a_resumed_run_has_the_same(tmp_path, alias, behind):
    initial, run = random_llama(tmp_path / "model", tied=True), tmp_path / "run"
    config = parse({"learner": {**DPO, "reference": alias}, "checkpoint": {"every_steps": 10}})
    groups = random_groups([[(2, 9), (2, 7)]], vocabulary=40)
    micro = pack(groups, record_of(groups, random_rewards(groups)), config.learner).micros[0]
    reference = reference_of(config, run, initial, ENGINE)
    assert isinstance(reference, Following)
    history = [initial]
    for step, scheduled in ((10, True), (13, False), (20, True), (30, True)):
        target = saved(run, step, rounds=len(history) - 1 + scheduled, scheduled=scheduled)
        history += [target] if scheduled else []
        reference.move()
        expected = history[-behind] if len(history) >= behind else initial
        assert reference.directory == str(expected)
        wanted = Reference(expected, config.learner).logprobs(micro)
        resumed = reference_of(config, run, initial, ENGINE)
        assert resumed is not None
        for found in (reference, resumed):
            np.testing.assert_array_equal(found.logprobs(micro), wanted)
    others = [Reference(p, config.learner).logprobs(micro) for p in history if p != expected]
    assert min(float(abs(other - wanted).max()) for other in others) > 0.1, "the models can be told apart"


def test_one_that_does_not_move_is_read_once(tmp_path):
    initial = random_llama(tmp_path / "model", tied=True)
    config = parse({"learner": {**DPO, "reference": "initial"}})
    assert isinstance(reference_of(config, tmp_path / "run", initial, ENGINE), Reference)
    unread = parse({"learner": {"reference": "previous"}})
    assert reference_of(unread, tmp_path / "run", initial, ENGINE) is None, "nothing asks it"
