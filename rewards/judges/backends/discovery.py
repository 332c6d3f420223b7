"""Which replicas of a judge are there: they say so again and again, and whoever asks them follows the list.

    replica ── sign every SIGN_S ──► Redis, good for GOOD_S ──► follow ──► its transport joins or leaves the pool

Only names stand there, and no key: how a name is reached, its secret included, is for `connect` to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.buffer.discovery import Roster
from rewards.judges.errors import JudgeError
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Transport

log = logging.getLogger(__name__)

FOLLOW_S = 0.5

Connect = Callable[[str, str], Awaitable[Transport]]
"""(name, what it says of itself) → how it is asked. Raises JudgeError if it is gone."""


async def follow(pool: JudgePool, roster: Roster, connect: Connect) -> None:
    """Keep the pool's replicas those of the roster, until cancelled. Calls under way at one that leaves end there."""
    joined: dict[tuple[str, str], Transport] = {}
    while True:
        there = await asyncio.to_thread(roster.there)
        # With another address it is another replica, whatever its name; versions of weights come and go under one.
        wanted = {(name, "" if pool.live else says): says for name, says in there.items()}
        for who in joined.keys() - wanted.keys():
            pool.replicas.remove(joined.pop(who))
        for who in wanted.keys() - joined.keys():
            try:
                joined[who] = await connect(who[0], wanted[who])
            except JudgeError as error:
                log.info("judge '%s': %s is on the roster and cannot be reached: %s", pool.name, who[0], error)
            else:
                pool.replicas.add(joined[who])
        if pool.live:
            for version in there.values():
                pool.saw(version)
        await asyncio.sleep(FOLLOW_S)
