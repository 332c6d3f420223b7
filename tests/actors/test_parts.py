"""A group of several policies, part by part: who claims asks the others, and nobody samples with weights too old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors import rollout
from actors.chat import Chat
from actors.environments.single_turn import SingleTurn
from actors.multi_policy import Play, is_older
from actors.rollout import RolloutWorker
from cluster.buffer import Buffer, Limits
from cluster.config import parse
from cluster.errors import DataError, InfrastructureError
from cluster.types import Message, Publication, Rollout, Task, WeightFile
from tests.fakes import FakeEngine
from tests.models import random_llama

TASK = Task("0", {"orig": (Message("user", "fine"),), "again": (Message("user", "well"),)})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture
def worker(model: Path, buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RolloutWorker]:
    """Makes workers of the policies `policy` and `b`, whose engines have the initial weights."""
    from transformers import AutoTokenizer

    monkeypatch.setattr(rollout, "CLAIM_S", 0.1)
    rollout_section = {"group_size": 2, "max_tokens": 4, "prompt_variants": ["orig", "again"]}
    settings = parse({"rollout": rollout_section, "engine": {"max_model_len": 64}})
    buffer.configure(Limits(2, 1, members=("b",)))
    chat = Chat(AutoTokenizer.from_pretrained(model))

    async def fetch(publication: Publication) -> str:
        return publication.file.path

    def make(policy: str, others: dict[str, Play] | None = None) -> RolloutWorker:
        return RolloutWorker(
            f"{policy}-0",
            policy=policy,
            engine=FakeEngine(model, settings, stop_tokens=chat.stop_tokens, version=rollout.INITIAL),
            chat=chat,
            environment=SingleTurn(),
            task_at=lambda _: TASK,
            buffer=buffer,
            config=settings,
            fetch=fetch,
            claims=policy == "policy",
            others=others,
        )

    return make


def publish(buffer: Buffer, model: Path, policy: str, epoch: int, step: int) -> None:
    buffer.announce(Publication(policy, epoch, step, WeightFile(str(model / "model.safetensors"))))


async def test_a_part_is_played_with_weights_no_older_than_the_claims(worker, buffer, model):
    epoch, one = buffer.resume("policy", None), worker("b")
    playing = asyncio.create_task(one.play(TASK, 3, f"{epoch}.0"))
    await asyncio.sleep(0.3)
    assert not playing.done(), "it has the weights of no epoch yet"
    publish(buffer, model, "policy", epoch, 0)
    await asyncio.sleep(0.3)
    assert not playing.done(), "these are another policy's"
    publish(buffer, model, "b", epoch, 0)
    rollouts = await asyncio.wait_for(playing, 5)
    assert [r.policy for r in rollouts] == ["b"] * 6
    assert [r.variant for r in rollouts] == ["orig"] * 3 + ["again"] * 3
    assert {span.version for r in rollouts for span in r.spans} == {f"{epoch}.0"}
    assert one.engine.updates == 1
    await one.play(TASK, 1, "0.7")
    assert one.engine.updates == 1, "newer weights will do"


async def test_a_group_has_every_policys_part_or_none(worker, buffer, model):
    epoch = buffer.resume("policy", None)
    publish(buffer, model, "policy", epoch, 0)
    asked: list[tuple[int, str]] = []
    trouble: list[Exception] = []

    async def other(task: Task, count: int, at_least: str) -> tuple[Rollout, ...]:
        asked.append((count, at_least))
        if trouble:
            raise trouble[0]
        return tuple(replace(r, policy="b") for r in await theirs.play(task, count, "0.0"))

    theirs, ours = worker("b"), worker("policy", {"b": other})
    await ours.receive(buffer.published("policy"))
    claim = buffer.claim("policy", worker="w", engine=f"{epoch}.0", timeout_s=0)
    group = await ours._group(claim, TASK)
    assert [(r.policy, r.variant) for r in group.rollouts] == [
        (policy, variant) for policy in ("policy", "b") for variant in ("orig", "again") for _ in range(2)
    ]
    assert asked == [(2, f"{epoch}.0")]
    trouble.append(DataError("the room has no air."))
    await ours._sample(claim)
    assert ours._counts["data_failures"] == 1
    assert buffer.summary("policy")["groups_dropped"] == {"data_failure": 1}
    trouble[0] = InfrastructureError("gone")
    again = buffer.claim("policy", worker="w", engine=f"{epoch}.0", timeout_s=0)
    with pytest.raises(InfrastructureError):
        await ours._sample(again)


def test_versions_are_ordered_by_epoch_then_step():
    assert is_older("1.9", "1.10")
    assert is_older("1.9", "2.0")
    assert not is_older("2.0", "1.9")
    assert not is_older("1.9", "1.9")
