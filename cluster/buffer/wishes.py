"""How many workers of each role are wanted, and how many are up: what driver and `cluster.scale` tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.buffer.connection import PATIENCE_S, Connection


class Wishes:
    """Of one run. Raises what a Buffer's calls raise when Redis is away."""

    def __init__(self, url: str, run: str, patience_s: float = PATIENCE_S) -> None:
        self._connection = Connection(url, run, patience_s)

    def close(self) -> None:
        self._connection.close()

    def wish(self, role: str, count: int) -> None:
        """So many workers of a role are wanted from now on, also after a restart of the driver."""
        key = f"{self._connection.prefix}wished"
        self._connection.patiently(lambda: self._connection.redis.hset(key, role, count))

    def forget(self, role: str) -> None:
        """The recipe's number of workers of a role holds again."""
        key = f"{self._connection.prefix}wished"
        self._connection.patiently(lambda: self._connection.redis.hdel(key, role))

    def wished(self) -> dict[str, int]:
        """What was wished for last, by role; the recipe's numbers hold for others."""
        return self._numbers("wished")

    def staff(self, counts: Mapping[str, int]) -> None:
        """How many workers of each role are up."""
        key = f"{self._connection.prefix}staffed"
        self._connection.patiently(lambda: self._connection.redis.hset(key, mapping={**counts}))

    def staffed(self) -> dict[str, int]:
        return self._numbers("staffed")

    def tell_moving(self, moving: Mapping[str, str]) -> None:
        """What each worker that is still to join or to leave does now, by its name, in words."""
        key = f"{self._connection.prefix}moving"

        def run() -> Any:
            with self._connection.redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                if moving:
                    pipe.hset(key, mapping={**moving})
                return pipe.execute()

        self._connection.patiently(run)

    def moving(self) -> dict[str, str]:
        """What the driver last told of workers that are still to join or to leave."""
        found: Any = self._connection.patiently(
            lambda: self._connection.redis.hgetall(f"{self._connection.prefix}moving")
        )
        return {name.decode(): said.decode() for name, said in found.items()}

    def _numbers(self, key: str) -> dict[str, int]:
        found: Any = self._connection.patiently(lambda: self._connection.redis.hgetall(self._connection.prefix + key))
        return {role.decode(): int(count) for role, count in found.items()}
