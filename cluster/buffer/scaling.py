"""Desired and actual number of workers per role: what the driver and `kanabo scale` exchange through Redis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.buffer.connection import PATIENCE_S, Connection
from cluster.errors import ConfigError


class ReplicaCounts:
    """The requested and actual numbers of workers of one run. Raises what a Buffer's calls raise when Redis is away."""

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


ROLES = ("rollout", "reward")
"""Roles of every run; a run with judges or scorers of its own has `judge:NAME` or `scorer:NAME` too."""

MAX_WORKERS = 10_000
"""Most workers of a role; a larger number is taken for a slip of the finger."""


def apply(run: ReplicaCounts, wishes: list[str]) -> dict[str, int]:
    """Wish for what `role=N`, `role=+N` and `role=-N` say; the numbers that came out. Raises ConfigError."""
    there, numbers = run.staffed(), {}
    known = sorted({*ROLES, *there})
    for wish in wishes:
        match = re.fullmatch(r"([^=]+)=([+-]?)(\d{1,18})", wish)
        if match is None or match[1] not in known:
            raise ConfigError(
                f"Invalid argument '{wish}': expected ROLE=N, ROLE=+N or ROLE=-N, for example rollout=4. Roles: "
                f"{', '.join(known)}."
            )
        role, sign, count = match[1], match[2], int(match[3])
        before = numbers.get(role, run.wished().get(role, there.get(role, 0)))
        wanted = before + count if sign == "+" else before - count if sign == "-" else count
        if wanted < 1:
            raise ConfigError(f"'{wish}' would leave {wanted} {role} workers; at least one must stay.")
        if wanted > MAX_WORKERS:
            raise ConfigError(f"'{wish}' asks for more than {MAX_WORKERS:,} {role} workers.")
        numbers[role] = wanted
    for role, count in numbers.items():
        run.wish(role, count)
    return numbers
