"""Builds the environment of a recipe; a class of the user's own is built on a thread of its own loop."""

from __future__ import annotations

import asyncio

from actors.environments import ENVIRONMENTS
from actors.environments.base import Environment
from cluster.config import Use
from cluster.errors import DataError, KanaboError
from cluster.plugins import build, lookup
from cluster.process.foreign_loops import RESTARTS, Call, Displaced, ForeignLoops

WHERE = "rollout.environment"


class EnvironmentBuilder:
    """Holds the environment of a worker, and builds one of the user's own for the first group that plays it.

    A constructor that raises or blocks costs that group, and the next group tries again.
    """

    def __init__(self, environment: Environment | Use, loops: ForeignLoops, timeout_s: float) -> None:
        """Take an environment that is there already, or the recipe's section.

        Raises ConfigError for a class that there is not, and for what an environment of Kanabo's refuses.
        """
        self._loops, self._timeout_s = loops, timeout_s
        self._building = asyncio.Lock()
        self._built = environment if isinstance(environment, Environment) else None
        if isinstance(environment, Use):
            self._section = environment
            if _is_own(lookup(ENVIRONMENTS, environment.use, WHERE)):
                self._built = self._build()

    def _build(self) -> Environment:
        return build(ENVIRONMENTS, self._section.use, self._section.options, WHERE)

    async def get(self) -> Environment:
        """Return the environment. Raises DataError where its constructor raises, or does not return in time."""
        if self._built is None:
            async with self._building:
                if self._built is None:
                    self._built = await self._build_in_thread()
        return self._built

    async def _build_in_thread(self) -> Environment:
        async def work(call: Call) -> Environment:
            return self._build()

        late = (
            f"{WHERE}.use = '{self._section.use}': the constructor did not return within "
            f"rollout.environment_timeout_s = {self._timeout_s:g} s."
        )
        for _ in range(RESTARTS):
            try:
                return await self._loops.run(object(), work, self._timeout_s, late=late)
            except Displaced:
                continue
            except DataError:
                raise
            except KanaboError as error:  # ConfigError: preflight built it, so another group may have better luck
                raise DataError(str(error)) from error
        raise DataError(f"{WHERE}.use = '{self._section.use}': other calls blocked the loop {RESTARTS} times.")


def _is_own(cls: object) -> bool:
    return getattr(cls, "__module__", "").startswith("actors.environments.")
