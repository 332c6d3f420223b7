"""A reward model as its actor runs it, apart from Ray: placed by the recipe, labelling, learning, telling."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from cluster.config import parse
from cluster.driver.worker_pool import PLACE, roles
from cluster.errors import ConfigError
from cluster.types.events import RewardModelReport
from cluster.workers import RewardModelActor, RunContext, reward_model
from rewards.learned.factory import followers
from rewards.learned.labeler import POLL_S

RECIPE = {
    "rewards": [{"use": "oni", "name": "curious", "options": {"model": "news"}}],
    "reward_models": {"news": {"use": "retrieval", "publish_every_s": 0.01, "judge": "words"}},
    "judges": {"words": {"kind": "keyword", "options": {"keywords": ["gold"]}}},
}


def test_a_recipe_asks_for_one_of_each():
    two = parse(RECIPE | {"reward_models": {"news": {"judge": "words"}, "other-1": {"judge": "words"}}})
    asked = roles(two)
    assert {role: count for role, count in asked.items() if role.startswith("reward_model")} == {
        "reward_model:news": 1,
        "reward_model:other-1": 1,
    }
    assert all(role.partition(":")[0] in PLACE for role in asked)
    assert reward_model.model_of_worker("reward_model:other-1-3") == "other-1"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reward_models": {}}, r"rewards\[0\] uses the model 'news'.*\[reward_models\.news\]"),
        ({"reward_models": {"new": {"judge": "words"}}}, "Did you mean 'new'"),
        (
            {"reward_models": {"news": {"judge": "word"}}},
            r"reward_models\.news asks the judge 'word'.*Did you mean 'words'",
        ),
    ],
)
def test_a_model_or_a_judge_that_is_not_there_is_an_error_of_the_recipe(changed, said):
    with pytest.raises(ConfigError, match=said):
        parse(RECIPE | changed)


async def test_it_labels_learns_tells_and_its_successor_goes_on(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_model, "REPORT_S", 0.05)
    context = RunContext(parse(RECIPE), "", redis_url, f"test-{uuid4().hex[:12]}", str(tmp_path))
    follower = followers(context.config, context.url, context.run_id)["news"]
    buffer = context.buffer()

    async def until(version: str) -> None:
        async with asyncio.timeout(60):
            while follower.version != version:
                await asyncio.sleep(0.02)
                await follower.refresh()

    async def told() -> dict[str, float]:
        async with asyncio.timeout(60):
            while True:
                events = [event for _, event in await asyncio.to_thread(buffer.events, "0")]
                found = [event.metrics for event in events if isinstance(event, RewardModelReport)]
                if found and found[-1]["reward_model/news_num_labels"] == 2:
                    return found[-1]
                await asyncio.sleep(0.05)

    await follower.ask(["you find gold", "a wall"])
    actor = RewardModelActor(context, "reward_model:news-0")
    assert "has just started" in await actor.waiting()
    running = asyncio.create_task(actor.run())
    await until("retrieval.1")
    assert (await follower.predict(["you find gold", "a wall"])).values.tolist() == [1.0, 0.0]
    metrics = await told()
    assert metrics["reward_model/news_good_frac"] == 0.5
    assert metrics["reward_model/news_num_asked"] == 2
    assert metrics["reward_model/news_num_outages"] == 0
    assert metrics["judge/words_num_calls"] == 2
    assert "has published 1 versions of 'news'" in await actor.waiting()
    running.cancel()  # it dies
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(1.5 * POLL_S)  # a thread that waits for keys outlives its task, as it would not its process

    successor = RewardModelActor(context, "reward_model:news-1")
    running = asyncio.create_task(successor.run())
    await follower.ask(["more gold"])
    await until("retrieval.2")
    known = (await follower.predict(["you find gold", "a wall", "more gold"])).values
    assert known.tolist() == [1.0, 0.0, 1.0], "what its predecessor had learnt is not lost"
    await successor.stop()
    async with asyncio.timeout(10):
        await running
    follower.close()
    buffer.close()


async def test_what_the_table_dies_of_ends_it(redis_url, tmp_path, monkeypatch):
    actor = RewardModelActor(RunContext(parse(RECIPE), "", redis_url, "gone", str(tmp_path)), "reward_model:news-0")

    async def fail() -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(actor._trainer, "run", fail)
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="disk is full"):
            await actor.run()
