"""Addresses that workers announce in Redis, signed again while they live."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from cluster.buffer.connection import PATIENCE_S, Connection

SIGN_S = 1.0

GOOD_S = 10.0
"""A replica that has not signed for this long is gone. Callers that get no answer notice a dead replica sooner."""


class Roster:
    """The replicas of one judge of one run; times are those of the Redis server. Raises what a Buffer's calls raise."""

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
