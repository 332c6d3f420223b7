"""100,000 tries of rewards that misbehave at random: no worker dies, and all that is stored can be read."""

import pytest

from tests.rewards import hostile
from tests.rewards.test_misbehaviour import misbehave

TRIES = 100_000


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("use", hostile.ALL)
async def test_rewards_that_misbehave_at_random_leave_nothing_unreadable(use):
    for first in range(0, TRIES // len(hostile.ALL), 2000):
        await misbehave(use, 2000, first)
