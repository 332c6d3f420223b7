"""Errors that Ray raises, sorted into failures of the machine and failures of the code."""

import asyncio
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.errors import InfrastructureError, KanaboError, StartFailed
from cluster.process.causes import root_of

INFRASTRUCTURE = (
    InfrastructureError, RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError, OutOfMemoryError,
    WorkerCrashedError,
)  # fmt: skip
"""What a worker may die of and be replaced."""

CLOSE_S = 20.0
"""For actors to close before they are killed."""


def cause_of(error: BaseException | None) -> BaseException | None:
    """What was raised in the actor: of groups of exceptions the one that explains them."""
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _init_failure(str(error).strip().splitlines()[-1])  # text is all Ray keeps
    if isinstance(error, RayTaskError):
        error = error.cause
    return None if error is None else root_of(error)


def _init_failure(line: str) -> KanaboError:
    """The error of an actor's constructor from the last line of its trace."""
    name, _, said = line.partition(": ")
    if name.rpartition(".")[2] == InfrastructureError.__name__:
        return InfrastructureError(said)
    return StartFailed(said if name.endswith(".StartFailed") else f"an actor could not be made: {line}")


def is_infrastructure(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(INFRASTRUCTURE)[1] is None
    return isinstance(error, INFRASTRUCTURE)


async def result(ref: Any) -> Any:
    """A Ray reference as a coroutine: tasks are made of those only."""
    return await ref


async def end(actors: Iterable[Any]) -> None:
    """Ask actors to close, so that what they started leaves with them, and kill them after a while."""
    actors = list(actors)
    asked = [asyncio.ensure_future(result(actor.close.remote())) for actor in actors]
    if asked:
        await asyncio.wait(asked, timeout=CLOSE_S)
    for actor in actors:
        ray.kill(actor)
