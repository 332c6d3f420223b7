"""One call of a signal, which is foreign code: whatever it does becomes scores, and a failure never a number."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.types import Group, Scores
from rewards.base import Services, Signal


async def ask(signal: Signal, group: Group, services: Services, timeout_s: float) -> tuple[Scores, str]:
    """Its answer, and why the call failed if it did: time-out, exception and wrong shape are `failed` scores."""
    try:
        scores = await asyncio.wait_for(signal.score(group, services), timeout_s)
        note = _misshapen(scores, len(group))
    except TimeoutError as error:
        note = str(error) or f"no answer within {timeout_s:g} s"
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
    return (Scores.failed(len(group), note), note) if note else (scores, "")


def _misshapen(scores: Any, num_rollouts: int) -> str:
    """What is wrong with a signal's answer, nothing if it is one score per rollout."""
    if not isinstance(scores, Scores):
        return f"it returned {type(scores).__name__}, not Scores"
    if scores.values.shape != (num_rollouts,):
        return f"it returned values of shape {scores.values.shape} for {num_rollouts} rollouts"
    if len(scores.provenance) not in (0, 1, num_rollouts):
        return f"it returned {len(scores.provenance)} provenances for {num_rollouts} rollouts"
    if scores.tokens is not None and len(scores.tokens) != num_rollouts:
        return f"it returned token values of {len(scores.tokens)} rollouts, the group has {num_rollouts}"
    return ""
