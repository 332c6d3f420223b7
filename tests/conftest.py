"""Fixtures for every folder: a real redis-server for the session, and a run of its own for each test."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from cluster.buffer import Buffer
from cluster.store import Store


@pytest.fixture(scope="session")
def redis_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An embedded server, with the durability of a real run."""
    with Store(tmp_path_factory.mktemp("redis")) as store:
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
