"""Many tasks played once each, outside the pipeline, for evaluation. Nothing is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from actors.tasks import checked
from cluster.errors import DataError
from cluster.types import Claim, Group, Rollout, Task


async def play_all(
    play: Callable[[Task], Awaitable[Rollout]],
    tasks: Sequence[Task],
    *,
    policy: str,
    at_once: int,
    failed: Callable[[str], None],
    played: Callable[[], None] = lambda: None,
) -> list[Group]:
    """A group of one rollout for each of `tasks`, in their order. One that fails is told to `failed` and left out."""
    places = asyncio.Semaphore(at_once)
    claim = Claim("evaluation", policy, 0, 0, 0, 0, "")

    async def one(place: int) -> Group | None:
        async with places:
            try:
                task = checked(tasks[place])
                return Group(claim, task, (await play(task),))
            except DataError as error:
                failed(f"evaluation task {place} left out: {error}")
                return None
            finally:
                played()

    groups = await asyncio.gather(*map(one, range(len(tasks))))
    return [group for group in groups if group is not None]
