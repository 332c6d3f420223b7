"""A scorer as its actor runs it, apart from Ray: it follows what is published, on the roster while it is there."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest

from cluster.buffer import Limits
from cluster.config import parse
from cluster.driver.preflight import aliases
from cluster.driver.worker_pool import PLACE, WorkerPool, roles
from cluster.errors import ConfigError
from cluster.types import Message, Publication, WeightFile
from cluster.workers import RunContext, ScorerActor, scorer
from rewards.scorers.types import ScorerUnavailable, TokenSequence
from tests.models import random_llama

RECIPE = {
    "rewards": [{"use": "self_certainty", "options": {"scorer": "live"}}],
    "scorers": {"live": {}, "first": {"model": "initial", "replicas": 2}},
}
PASSAGE = [TokenSequence((Message("user", "1+1="),), np.array([3, 4], np.int32))]


@pytest.fixture
def context(redis_url, tmp_path):
    model = random_llama(tmp_path / "model", tied=True, chat=True)
    return RunContext(parse(RECIPE), str(model), redis_url, f"test-{uuid4().hex[:12]}", str(tmp_path))


def published(context: RunContext, tmp_path, step: int) -> Publication:
    """Weights of a seed of their own, as a learner leaves them."""
    model = random_llama(tmp_path / f"weights-{step}", tied=True, seed=step)
    return Publication("policy", 1, step, WeightFile(f"{model}/model.safetensors", socket.gethostname()))


def test_a_recipe_asks_for_its_replicas_and_the_lap_waits_for_one_of_each(context):
    asked = roles(context.config)
    assert {role: n for role, n in asked.items() if role.startswith("scorer")} == {"scorer:live": 1, "scorer:first": 2}
    assert all(role.partition(":")[0] in PLACE for role in asked)
    assert scorer.scorer_of("scorer:my-live-3") == "my-live"
    staff = WorkerPool(context, context.buffer(), None, lambda *_: None)  # pyright: ignore
    for name in ("rollout-0", "scorer:first-0"):
        staff.arrived(name, object())
    assert not staff.complete()
    staff.arrived("scorer:live-0", object())
    assert staff.complete()


@pytest.mark.parametrize("changed", [{"weights": {"transport": "nccl"}}, {"learner": {"lora": {}}}])
def test_live_weights_that_are_no_file_are_refused(changed):
    with pytest.raises(ConfigError, match=r"scorers\.live reads with the live policy's weights"):
        parse(RECIPE | changed)
    parse(RECIPE | {"scorers": {"live": {"model": "initial"}}} | changed)


async def test_it_reads_as_the_newest_weights_published_and_says_which(context, tmp_path):
    buffer = context.buffer()
    buffer.configure(Limits(1, 0))
    buffer.resume("policy", None)
    actor, first = ScorerActor(context, "scorer:live-0"), ScorerActor(context, "scorer:first-0")
    await actor.ready()
    await first.ready()
    running = [asyncio.create_task(a.run()) for a in (actor, first)]
    with pytest.raises(ScorerUnavailable, match="first publication"):
        await actor.read(PASSAGE, 0.05)
    [initial] = await first.read(PASSAGE, 30)
    assert initial.version == "initial"

    buffer.announce(published(context, tmp_path, 0))  # of seed 0, as the model it began with
    [before] = await actor.read(PASSAGE, 30)
    assert before.version == "1.0"
    np.testing.assert_allclose(before.logprobs, initial.logprobs, atol=1e-6)

    gone = Publication("policy", 1, 1, WeightFile("/nowhere/1.1.safetensors", socket.gethostname()))
    buffer.announce(gone)
    await asyncio.sleep(0.5)
    assert (await actor.read(PASSAGE, 30))[0].version == "1.0", "a file that is gone leaves the weights as they are"
    buffer.announce(published(context, tmp_path, 2))
    after = before
    async with asyncio.timeout(30):
        while after.version != "1.2":
            await asyncio.sleep(0.05)
            [after] = await actor.read(PASSAGE, 30)
    assert abs(after.logprobs - before.logprobs).max() > 1e-3
    assert "as version 1.2" in await actor.waiting()

    signed = scorer.roster(context, "live")
    assert list(signed.there()) == ["scorer:live-0"]
    await actor.stop()
    await first.stop()
    async with asyncio.timeout(20):
        await asyncio.gather(*running)
    assert signed.there() == {}
    buffer.close()


async def test_a_scorer_of_the_checkpoint_before_reads_as_the_first_weights_until_there_is_one(context, tmp_path):
    before = {"before": {"model": "previous"}}
    context = replace(context, config=parse(RECIPE | {"scorers": RECIPE["scorers"] | before}))
    actor = ScorerActor(context, "scorer:before-0")
    await actor.ready()
    running = asyncio.create_task(actor.run())
    [initial] = await actor.read(PASSAGE, 30)
    assert (initial.version, initial.is_initial) == ("initial", True)
    found = initial
    for step in (5, 10):
        checkpoint = tmp_path / "checkpoints" / f"global_step_{step}"
        random_llama(checkpoint, tied=True, seed=step)
        (checkpoint / "manifest.json").write_text("{}")
        last = found
        async with asyncio.timeout(30):
            while found.version != f"policy@{step}":
                await asyncio.sleep(0.05)
                [found] = await actor.read(PASSAGE, 30)
        assert abs(found.logprobs - last.logprobs).max() > 1e-3
        assert not found.is_initial
    await actor.stop()
    async with asyncio.timeout(20):
        await running


def test_a_scorer_of_a_checkpoint_that_is_not_there_is_refused_before_anything_starts(context, tmp_path):
    settings = parse(RECIPE | {"scorers": RECIPE["scorers"] | {"old": {"model": "policy@40"}}})
    with pytest.raises(ConfigError, match=r"scorers\.old\.model = 'policy@40': there is no model"):
        aliases(settings, tmp_path)


async def test_a_tokenizer_that_many_threads_ask_at_once_is_loaded_once(context, monkeypatch):
    import transformers

    from cluster.workers import reward

    loaded = []

    class Slow:
        @staticmethod
        def from_pretrained(directory):
            loaded.append(directory)
            time.sleep(0.1)
            return from_pretrained(directory)

    from_pretrained = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers, "AutoTokenizer", Slow)
    chat = reward._chat(context.model_dir)
    found = await asyncio.gather(*(asyncio.to_thread(lambda: chat().text([3, 4])) for _ in range(4)))
    assert found == ["01"] * 4
    assert loaded == [context.model_dir]
