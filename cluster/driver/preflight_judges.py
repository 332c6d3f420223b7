"""Judges tried before the run: each server of kind `url` is asked what the run's rewards will ask.

    reward on a made-up group ─► its first questions ─► every server of its judge ─► warning, or ConfigError

A judge that cannot be reached, or refuses, would leave every one of its scores unknown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.config import JudgeSection, RunConfig
from cluster.driver.preflight_rewards import made_up
from cluster.driver.reward_trial import BLOCKED_S
from cluster.errors import ConfigError
from cluster.types import Group, Message, Task
from rewards.asking import ask
from rewards.base import Services
from rewards.judges.backends.http import TOO_MUCH
from rewards.judges.errors import (
    JudgeAnswerTooLong,
    JudgeBusy,
    JudgeError,
    JudgeProtocolError,
    JudgeRejected,
    JudgeServerError,
    JudgeTimeout,
    JudgeUnauthorised,
)
from rewards.judges.factory import PLACED, open_judges
from rewards.judges.first_question import Listener, Question, ask_server
from rewards.judges.pool.archive import MemoryArchive
from rewards.judges.pool.pool import JudgePool
from rewards.judges.types import Call, Request, Transport
from rewards.learned.caption_labels import MAX_TOKENS, TEMPERATURE
from rewards.registry import build_reward

MOST_QUESTIONS = 3
"""A judge whose first answer is unreadable is asked other questions of the same reward before it is refused."""
BARE = Call(
    (Message("system", "Answer in one word."), Message("user", "Is 2 + 2 equal to 4?")), MAX_TOKENS, TEMPERATURE
)
"""For a judge that no reward of the recipe asks by itself, such as one that labels."""


@dataclass(frozen=True)
class _Asked:
    """What one reward, or nobody in particular, asks of a judge."""

    where: str
    questions: list[Question] = field(default_factory=lambda: [BARE])


def judges(settings: RunConfig, task: Task) -> list[str]:
    """Ask every judge of kind `url` what the rewards ask about a made-up group of the task; return warnings.

    Raises ConfigError, with the key to change, for a judge that cannot be reached, refuses, or is never readable.
    """
    sections = {name: section for name, section in settings.judges.items() if section.kind == "url"}
    warnings: list[str] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            warnings.extend(asyncio.run(_ask_all(settings, sections, made_up(settings, task))))
        except Exception as error:  # raised again by the caller's thread
            failures.append(error)

    if sections:
        # In a thread of its own: the caller may have an event loop.
        thread = threading.Thread(target=run, daemon=True, name="trial of the judges")
        thread.start()
        thread.join()
    if failures:
        raise failures[0]
    return warnings


def unasked(settings: RunConfig) -> list[str]:
    """The judges that cannot be asked before the run, in sentences."""
    why = {"vllm": "the run starts it", "policy": "it is the policy in training"}
    return [
        f"judges.{name} (kind = '{section.kind}') was not asked: {why[section.kind]}."
        for name, section in settings.judges.items()
        if section.kind in PLACED
    ]


async def _ask_all(settings: RunConfig, sections: Mapping[str, JudgeSection], group: Group) -> list[str]:
    asked = await _questions(settings, sections, group)
    pools = open_judges(sections, MemoryArchive())
    try:
        found = await asyncio.gather(
            *(_ask(name, section, pools[name], asked[name]) for name, section in sections.items())
        )
    finally:
        await asyncio.gather(*(pool.close() for pool in pools.values()))
    return [warning for warnings in found for warning in warnings]


async def _questions(
    settings: RunConfig, sections: Mapping[str, JudgeSection], group: Group
) -> dict[str, list[_Asked]]:
    """What each reward asks first of each judge."""
    found: dict[str, list[_Asked]] = {name: [] for name in sections}
    for i, section in enumerate(settings.rewards):
        reward = build_reward(section, f"rewards[{i}]")
        if "judge" not in reward.services or reward.declines(group.task):
            continue
        listeners = {name: Listener(name) for name in settings.judges}
        # A text longer than any rollout: whatever looks for a place in it finds it at the first token.
        services = Services(threads=2, judges=listeners, text=lambda tokens: " " * 10_000 if tokens else "")
        timeout_s = min(section.timeout_s, BLOCKED_S)
        try:
            await ask(reward, group, services, timeout_s, settings.reward_names[i])
        finally:
            services.close()
        for name in sections:
            if questions := listeners[name].questions[:MOST_QUESTIONS]:
                found[name].append(_Asked(f"rewards[{i}] = '{section.use}'", questions))
    return {name: asked or [_Asked(f"[judges.{name}]")] for name, asked in found.items()}


async def _ask(name: str, section: JudgeSection, pool: JudgePool, asked: Sequence[_Asked]) -> list[str]:
    """Ask every server of a judge; return warnings. Raises ConfigError if none answers, or one refuses."""
    transports = [replica.transport for replica in pool.replicas]
    answers = await asyncio.gather(*(_server(name, section, transport, asked) for transport in transports))
    failed = [(where, error) for where, error in answers if isinstance(error, JudgeError)]
    refused = [found for found in failed if isinstance(found[1], JudgeUnauthorised | JudgeRejected)]
    if refused or len(failed) == len(transports):
        where, error = (refused or failed)[0]
        raise ConfigError(
            f"judges.{name} was asked one question, as {where} will, and gave no answer: {error} {_advice(name, error)}"
        )
    warnings = [
        f"judges.{name} was asked one question, and one of its servers gave no answer: {error} {_advice(name, error)}"
        for _, error in failed
    ]
    for one in asked:
        request = one.questions[0]
        if isinstance(request, Request):
            await pool.accept(request.template, logprobs=request.logprobs)
    return warnings + [warning for _, found in answers if isinstance(found, list) for warning in found]


async def _server(
    name: str, section: JudgeSection, transport: Transport, asked: Sequence[_Asked]
) -> tuple[str, list[str] | JudgeError]:
    """Warnings about one server, or its error and the reward that asked. Raises ConfigError if it is never readable."""
    warnings = []
    for one in asked:
        try:
            unreadable = await ask_server(transport, one.questions, section.deadline_s)
        except JudgeError as error:
            return one.where, error
        remedy = (
            f"Use another model (judges.{name}.model), or another template, mode or max_tokens of the reward "
            f"({one.where.partition(' ')[0]}.options)."
        )
        if len(unreadable) == len(one.questions):
            raise ConfigError(
                f"judges.{name} gave no verdict that {one.where} can read: {len(unreadable)} questions were asked "
                f"twice each. The last answer of {transport.name}: {unreadable[-1]}. {remedy}"
            )
        if unreadable:
            warnings.append(
                f"judges.{name}: {one.where} cannot read the first answer of {transport.name}, though a later one: "
                f"{unreadable[0]}. Scores of such answers are unknown. {remedy}"
            )
    return "", warnings


def _advice(name: str, error: JudgeError) -> str:
    """What to change, with the recipe's key."""
    where, urls = f"judges.{name}", f"judges.{name}.urls"
    match error:
        case JudgeUnauthorised():
            return f"{where}.key_env must name an environment variable that holds a key of this server."
        case JudgeRejected(status=404):
            return f"Name a model that the server has in {where}.model, and its base URL, often with /v1, in {urls}."
        case JudgeRejected() if 300 <= error.status < 400 or error.status == 405:
            return f"{urls} must be the server's own base URL, often with /v1: redirects are not followed."
        case JudgeRejected() if TOO_MUCH.search(str(error)):
            return "Lower max_tokens in the reward's options, or let the server allow more."
        case JudgeRejected():
            return f"Leave the field out with {where}.omit, or change {where}.model or {where}.options."
        case JudgeTimeout():
            return f"Raise {where}.deadline_s if the server takes so long, or change {urls}."
        case JudgeAnswerTooLong():
            return "Lower max_tokens in the reward's options."
        case JudgeProtocolError():
            return f"{urls} must be the base URL of an OpenAI-compatible server, often with /v1."
        case JudgeBusy():
            return f"Wait until the server takes requests again, or change {urls} or {where}.key_env."
        case JudgeServerError():
            return f"Look at the server's own log, or change {urls}."
        case _:
            return f"Start the server, or change {urls}."
