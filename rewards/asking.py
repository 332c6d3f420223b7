"""One call of a reward, which is foreign code: whatever it does becomes scores, and a failure never a number."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
from dataclasses import fields
from typing import Any

import numpy as np

from cluster.types import Group, Rollout, Scores
from rewards.accepted import accepted
from rewards.base import Reward, Services
from rewards.containment import ASKED, contain, described, readable

log = logging.getLogger(__name__)

CANCEL_S = 1.0
"""A reward that was cut off may take this long to clean up; then it is left alone."""
ARRAYS = ("tokens", "loss_mask", "logprobs")
OWN = "rewards"
"""Rewards of this package are not handed copies."""


async def ask(reward: Reward, group: Group, services: Services, timeout_s: float, name: str = "") -> tuple[Scores, str]:
    """Its answer, and why the call failed if it did: time-out, exception and wrong shape are `failed` scores.

    Whatever the reward raises, SystemExit and CancelledError included, stays here; only the caller's own cancellation
    is passed on. `name` is what the reward is called where it holds the event loop.
    """
    loop = asyncio.get_running_loop()
    contain(loop)
    before = ASKED.set((name or type(reward).__name__, group.id))
    try:
        call = loop.create_task(_called(reward, group, services))
    finally:
        ASKED.reset(before)
    try:
        await asyncio.wait({call}, timeout=timeout_s)
    finally:
        overdue = not call.done()
        call.cancel()
    if overdue:
        await asyncio.wait({call}, timeout=CANCEL_S)
        note = f"no answer within {timeout_s:g} s"
        if not call.done():
            log.warning("reward '%s' goes on after it was cut off (%s)", name or type(reward).__name__, note)
    elif call.cancelled():
        note = "CancelledError"
    else:
        answer, error = call.result()
        note = _why(error) if error is not None else ""
        if not note:
            try:
                return accepted(answer, group), ""
            except BaseException as refused:  # attributes and lengths of what it returned are foreign code
                note = str(refused) if type(refused) is ValueError else described(refused)
    note = readable(note)
    return Scores.failed(len(group), note), note


async def _called(reward: Reward, group: Group, services: Services) -> tuple[Any, BaseException | None]:
    try:
        given = group if is_own(reward) else copied(group)
        if inspect.iscoroutinefunction(reward.score):
            return await reward.score(given, services), None
        answer = await services.thread(lambda: reward.score(given, services))
        return (await answer if inspect.isawaitable(answer) else answer), None
    except BaseException as error:  # also SystemExit: it is the reward's failure, not this process's end
        return None, error


def is_own(reward: Reward) -> bool:
    """Whether the reward is a part of Kanabo, and not a user's."""
    return type(reward).__module__.partition(".")[0] == OWN


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return described(error).removeprefix("TimeoutError: ") or "TimeoutError"
    return described(error)


def copied(group: Group) -> Group:
    """The group as foreign code may have it: nothing that it changes is seen elsewhere, arrays are read-only."""
    # `deepcopy` takes what its memo holds, by identity.
    memo = {id(array): _fixed(array) for r in group.rollouts for array in (getattr(r, name) for name in ARRAYS)}
    return copy.deepcopy(group, memo)


def _fixed(array: np.ndarray) -> np.ndarray:
    """Read-only, and its owner bytes, so that it cannot be made writable again."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


assert set(ARRAYS) <= {f.name for f in fields(Rollout)}
