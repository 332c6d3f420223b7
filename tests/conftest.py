"""Fixtures for every folder: a real redis-server for the session, and a run of its own for each test."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from cluster.buffer import Buffer
from cluster.buffer.server import Store

LONG_FILES = (
    "cluster/test_offline.py",
    "learner/test_engine.py",
    "cluster/test_state_machine.py",
    "learner/test_saved_state.py",
    "test_package.py",
    "cluster/test_check.py",
    "cluster/test_console_limits.py",
    "environments/test_real.py",
)
"""Files of tests that take longest, relative to this folder. They run first, so that two workers end together."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis_store" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))  # stable: the others stay in their order


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
