"""A recipe's reward models, from processes that share nothing but Redis and a directory."""

import asyncio
from uuid import uuid4

import pytest

from cluster.buffer import Buffer
from cluster.config import parse
from cluster.errors import ConfigError
from cluster.types import Event
from rewards.base import Services
from rewards.learned.factory import followers, parts, relabelling
from rewards.learned.labels import Label
from rewards.learned.oni import Oni
from tests.rewards.learned.judges import is_good
from tests.rewards.learned.test_client import of, played

RECIPE = {
    "rewards": [{"use": "oni", "name": "curious", "blocking": False}, {"use": "exact"}],
    "reward_models": {"oni": {"use": "retrieval", "publish_every_s": 0.01}},
    "judges": {"judge": {"kind": "keyword"}},
}


async def test_captions_of_a_reward_worker_become_labels_and_a_published_version(redis_url, tmp_path):
    name, config = f"test-{uuid4().hex[:12]}", parse(RECIPE)

    async def complete(messages):
        caption = messages[-1].content.rsplit("Message:", 1)[1]
        return f"<label>{'florp' if is_good(caption) else 'drell'}</label>"

    here = followers(config, redis_url, name)
    services, reward = Services(reward_models=here), Oni()
    await reward.prepare(services)
    stored = of(played(Event("you find gold", 0)), played(Event("a wall", 1)))
    before = await reward.score(stored, services)
    assert before.values.tolist() == [0.0, 0.0]
    trainer, labeller = parts("oni", config, redis_url, name, tmp_path, complete)
    tasks = [asyncio.create_task(part.run()) for part in (trainer, labeller)]
    async with asyncio.timeout(30):
        while reward.version() == before.version:
            await asyncio.sleep(0.02)
            await reward.refresh(services)
    for part in (trainer, labeller):
        await part.stop()
    await asyncio.gather(*tasks)
    after = await reward.score(stored, services)
    assert after.values.tolist() == pytest.approx([0.4, 0.0])
    assert trainer.snapshot()["reward_model/oni_coverage_frac"] == 0.5, "two look-ups before the labels, two after"
    services.close()
    here["oni"].close()


def test_a_new_version_concerns_the_rewards_that_use_the_model(redis_url):
    class Noted(Buffer):
        def relabel(self, versions):
            noted.append(dict(versions))

    noted, buffer = [], Noted(redis_url, f"test-{uuid4().hex[:12]}")
    relabelling("oni", parse(RECIPE), buffer)("retrieval.7")
    relabelling("other", parse(RECIPE), buffer)("retrieval.8")
    assert noted == [{"curious": "retrieval.7"}]


def test_an_unknown_model_is_an_error_of_the_recipe(redis_url):
    config = parse(RECIPE | {"reward_models": {"oni": {"use": "retrival"}}})
    with pytest.raises(ConfigError, match="Did you mean 'retrieval'"):
        followers(config, redis_url, "x")


def test_labels_of_a_table_survive_pickling(redis_url):
    import pickle

    from rewards.learned.label_store import RedisLabels

    labels = RedisLabels(redis_url, f"test-{uuid4().hex[:12]}", "oni", version="b", max_backlog=3, ttl_s=5.0)
    again = pickle.loads(pickle.dumps(labels))
    again.add({"gold": Label(1.0, version="b")})
    assert labels.submit(["gold", "wall"]) == 1
    labels.close()
    again.close()
