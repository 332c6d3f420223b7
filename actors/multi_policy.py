"""All policies of a run, as the worker that has claimed a group sees them: its own engine, and the others elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Protocol

import numpy as np

from actors.environments.multi_policy import MultiPolicyEnvironment, Participants
from actors.episode import is_own
from cluster.errors import DataError, InfrastructureError, LeaseLost, one_line
from cluster.process.foreign_loops import RESTARTS, Call, Displaced, ForeignLoops
from cluster.types import Claim, Message, Rollout, Task
from cluster.types.wire import brief, conformed

Play = Callable[[Task, int, str], Awaitable[tuple[Rollout, ...]]]
"""(task, how many episodes of each variant, version that the weights are no older than) → a policy's rollouts."""


class Generators(Protocol):
    """Models that answer every task too and are never trained."""

    shares: Mapping[str, int]
    """By name: episodes that each adds to a group."""

    def play(self, name: str, task: Task) -> Coroutine[Any, Any, list[Rollout]]:
        """One episode. Raises DataError."""
        ...


class MultiPolicySampler:
    def __init__(
        self,
        policy: str,
        play: Play,
        others: Mapping[str, Play],
        seed: int,
        generators: Generators | None = None,
        loops: ForeignLoops | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """`play` is `policy`'s own, on the engine of this process; meetings of the user's own run on `loops`, and have
        `timeout_s` from one utterance to the next."""
        self._plays = {policy: play, **others}
        self._loops, self._timeout_s = loops, timeout_s
        self._others, self._seed, self._generators = others, seed, generators

    def elsewhere(self, claim: Claim, task: Task, count: int) -> list[asyncio.Future[tuple[Rollout, ...]]]:
        """`count` episodes of each other policy, under way."""
        return [asyncio.ensure_future(play(task, count, _version(claim))) for play in self._others.values()]

    def generated(self, task: Task) -> list[asyncio.Task[list[Rollout]]]:
        """What the generators add, under way: behind the policy's own, under their own names."""
        if self._generators is None:
            return []
        shares = self._generators.shares.items()
        names = [name for name, share in shares for _ in range(share)]
        return [asyncio.create_task(self._generators.play(name, task)) for name in names]

    async def meet(
        self, meeting: MultiPolicyEnvironment, claim: Claim, task: Task, progress: Callable[[], Awaitable[None]]
    ) -> tuple[Rollout, ...]:
        """A group of a meeting; `progress` is called after every utterance. Raises DataError if the meeting fails."""

        async def speak(policy: str, prompt: tuple[Message, ...]) -> Rollout:
            (rollout,) = await self._plays[policy](replace(task, variants={"orig": prompt}), 1, _version(claim))
            await progress()
            return rollout

        random = Random(f"{self._seed}/{claim.task}")
        failed = f"the meeting failed on task {task.id}: "
        if is_own(meeting):
            try:
                return _checked(
                    await meeting.hold(task, Participants(tuple(self._plays), speak, random)), tuple(self._plays)
                )
            except (DataError, InfrastructureError, LeaseLost):
                raise
            except Exception as error:
                raise DataError(failed + one_line(error)) from error

        async def hold(call: Call) -> tuple[Rollout, ...]:
            sampled: list[Rollout] = []

            async def say(policy: str, prompt: tuple[Message, ...]) -> Rollout:
                prompt = conformed(tuple[Message, ...], prompt, "prompt")
                rollout = await call.outside(partial(speak, policy, prompt))
                sampled.append(rollout)
                return _read_only(rollout)

            given = await meeting.hold(deepcopy(task), Participants(tuple(self._plays), say, random))
            rollouts = conformed(tuple[Rollout, ...], _checked(given, tuple(self._plays)), "rollouts")
            _check_sampled(rollouts, sampled)
            return rollouts

        late = f"no utterance and no end within rollout.environment_timeout_s = {self._timeout_s:g} s."
        loops = self._loops or ForeignLoops()
        try:
            for _ in range(RESTARTS):
                with suppress(Displaced):  # a meeting of another group blocks the loop
                    return await loops.run(claim, hold, self._timeout_s, late=late)
            raise DataError(f"others blocked its loop {RESTARTS} times.")
        except DataError as error:
            raise DataError(f"{failed}{error}") from error
        finally:
            if loops is not self._loops:
                loops.close()


def _read_only(rollout: Rollout) -> Rollout:
    """The rollout as foreign code may have it: what is stored are its own arrays, whatever happens to these."""

    def fixed(array: np.ndarray) -> np.ndarray:
        return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)

    return replace(
        rollout,
        tokens=fixed(rollout.tokens),
        loss_mask=fixed(rollout.loss_mask),
        logprobs=fixed(rollout.logprobs),
    )


def _checked(rollouts: object, policies: tuple[str, ...]) -> tuple[Rollout, ...]:
    found = tuple(rollouts) if isinstance(rollouts, list | tuple) else ()
    if not found or not all(isinstance(r, Rollout) and r.policy in policies for r in found):
        raise DataError(f"the meeting gave {brief(rollouts)}; a list of rollouts that were spoken in it is expected.")
    return found


def _check_sampled(rollouts: Sequence[Rollout], sampled: Sequence[Rollout]) -> None:
    """Raise DataError unless each rollout has the tokens and log-probs of another one that was sampled."""
    left = Counter(map(_sample_of, sampled))
    for i, rollout in enumerate(rollouts):
        sample = _sample_of(rollout)
        if not left[sample]:
            known = "comes a second time" if sample in left else "was not sampled in this group"
            raise DataError(
                f"rollouts[{i}] {known}: {brief(rollout.text)}. Return what `say` gives, each at most once; variant, "
                "parent, agent, answer, events and reward may be others."
            )
        left[sample] -= 1


def _sample_of(rollout: Rollout) -> tuple[object, ...]:
    """What an engine has made of a rollout, to compare it."""
    arrays = ((rollout.tokens, np.int32), (rollout.loss_mask, np.bool_), (rollout.logprobs, np.float32))
    made = (rollout.policy, rollout.turns, rollout.spans, rollout.finish, rollout.temperature)
    return *made, *((*array.shape, array.astype(dtype).tobytes()) for array, dtype in arrays)


def is_older(version: str, than: str) -> bool:
    """Return whether the first of two versions `epoch.step` is older."""
    one, other = (tuple(map(int, v.split("."))) for v in (version, than))
    return one < other


def _version(claim: Claim) -> str:
    return f"{claim.epoch}.{claim.version}"
