"""Which replicas of a judge are there: they say so again and again, and whoever asks them follows the list.

    replica ── sign every SIGN_S ──► Redis, good for GOOD_S ──► follow ──► its transport joins or leaves the pool

Only names stand there, and no key: how a name is reached, its secret included, is for `connect` to know.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.buffer.connection import PATIENCE_S, Connection
from rewards.judges.errors import JudgeError
from rewards.judges.pool import JudgePool
from rewards.judges.types import Transport

log = logging.getLogger(__name__)

SIGN_S = 1.0
GOOD_S = 10.0
"""Who has not signed for so long is gone. A replica that dies sooner is noticed by whom it does not answer."""
FOLLOW_S = 0.5

Connect = Callable[[str, str], Awaitable[Transport]]
"""(name, what it says of itself) → how it is asked. Raises JudgeError if it is gone."""


class Roster:
    """Of one judge of one run; times are those of the Redis server. Raises what a Buffer's calls raise."""

    def __init__(self, url: str, run: str, judge: str, patience_s: float = PATIENCE_S) -> None:
        self._connection = Connection(url, run, patience_s)
        self._key = f"{self._connection.prefix}judge:{judge}"

    def sign(self, replica: str, says: str) -> None:
        """It is there for another `GOOD_S`; `says` is its address, or the version of its weights."""
        entry = json.dumps([self._now_s() + GOOD_S, says])
        self._connection.patiently(lambda: self._connection.redis.hset(self._key, replica, entry))

    def leave(self, replica: str) -> None:
        self._connection.patiently(lambda: self._connection.redis.hdel(self._key, replica))

    def there(self) -> dict[str, str]:
        """What each replica that is there says of itself, by name."""
        found: Any = self._connection.patiently(lambda: self._connection.redis.hgetall(self._key))
        now_s, entries = self._now_s(), {name.decode(): json.loads(entry) for name, entry in found.items()}
        return {name: says for name, (until_s, says) in sorted(entries.items()) if until_s > now_s}

    def close(self) -> None:
        self._connection.close()

    def _now_s(self) -> float:
        seconds, micros = self._connection.patiently(self._connection.redis.time)  # pyright: ignore
        return seconds + micros / 1e6


async def keep_signing(roster: Roster, replica: str, says: Callable[[], str]) -> None:
    """Until cancelled; then it leaves."""
    try:
        while True:
            await asyncio.to_thread(roster.sign, replica, says())
            await asyncio.sleep(SIGN_S)
    finally:
        await asyncio.to_thread(roster.leave, replica)


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
