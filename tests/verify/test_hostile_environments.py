"""100,000 tries of environments that misbehave at random: no worker dies, and all that is stored can be read."""

import sys

import pytest

from tests.actors import hostile
from tests.actors.test_hostile_environments import misbehave

TRIES = 100_000


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # of coroutines and generators that are left half-way
@pytest.mark.parametrize("cls", hostile.ALL, ids=lambda cls: cls.__name__)
async def test_environments_that_misbehave_at_random_leave_nothing_unreadable(cls, monkeypatch):
    # pytest's own would run in threads of environments, where a thread that is given up is interrupted.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    for first in range(0, TRIES // len(hostile.ALL), 1000):
        assert await misbehave(cls, first, 1000) > 50
