"""Fixtures for every folder: a real redis-server for the session, and a run of its own for each test."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from cluster.buffer import Buffer
from cluster.buffer.server import Store


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis_store" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")


@pytest.fixture(scope="session")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An embedded server that does not wait for the disk; `cluster/test_store.py` tests those that do."""
    with Store(tmp_path_factory.mktemp("redis")) as store:
        redis.Redis.from_url(store.url).config_set("appendfsync", "everysec")
        yield store


@pytest.fixture
def redis_url(redis_store: Store) -> str:
    return redis_store.url


@pytest.fixture
def buffer(redis_url: str) -> Iterator[Buffer]:
    """The buffer of a run that no other test sees."""
    buffer = Buffer(redis_url, f"test-{uuid4().hex[:12]}")
    yield buffer
    buffer.close()
