"""Whatever an environment does: a sound group is stored or its failure is named, and the worker goes on."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time

import numpy as np
import pytest

from actors.chat import Chat
from actors.engine import Sample
from actors.environments import Environment
from actors.environments.multi_policy import MultiPolicyEnvironment
from actors.rollout import RolloutWorker
from cluster.config import parse
from cluster.types import Claim, Group, Task, VersionSpan, decode, encode
from cluster.types.events import encode_event
from tests.actors import hostile
from tests.cluster import hostile_groups
from tests.models import CHAT_TEMPLATE, character_tokenizer


class Dice:
    """An engine that answers at once, with letters, and every turn ends in another way."""

    exact = False
    version, max_model_len = "1.0", 96

    def __init__(self) -> None:
        self._random = random.Random(0)

    async def sample(self, prompt, *, max_tokens, temperature, **_):
        count = min(max_tokens, self._random.randint(1, 6))
        finish = "length" if count == max_tokens else self._random.choice(("stop", "stop", "abort"))
        tokens = np.array(self._random.choices(range(30, 50), k=count), np.int32)
        return Sample(tokens, np.zeros(count, np.float32), (VersionSpan(self.version, 0, count),), finish, ())


class MemoryBuffer:
    """Hands out each claim once; remembers what became of it."""

    def __init__(self, num_claims: int) -> None:
        self.lock, self.num_claims, self.claimed = threading.Lock(), num_claims, 0
        self.groups: dict[int, bytes] = {}
        self.given_up: dict[int, str] = {}
        self.last_failures: list[str] = []

    @property
    def done(self) -> bool:
        return len(self.groups) + len(self.given_up) == self.num_claims

    def claim(self, policy, *, worker, engine, timeout_s):
        with self.lock:
            seq, self.claimed = self.claimed, self.claimed + 1
        if seq < self.num_claims:
            return Claim(f"{policy}/1/{seq}", policy, 1, seq, seq, 0, "secret")
        time.sleep(0.02)
        return None

    def put(self, group):
        self.groups[group.claim.seq] = encode(group)

    def give_up(self, claim, reason, *, requeue):
        assert claim.seq not in self.given_up
        self.given_up[claim.seq] = reason

    def renew(self, claim): ...

    def deaths_over(self, claim):
        return 0

    def published(self, policy, *, other_than, timeout_s):
        time.sleep(0.02)

    def emit(self, event):
        encode_event(event)


class Failures(logging.Handler):
    """What a worker logs about groups that it drops."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def task_at(seed: int) -> Task:
    return Task.of(f"t{seed}", "2+2=?", "4", nested={"list": [seed]})


async def misbehave(cls: type[Environment], first: int, count: int) -> int:
    """Sample `count` groups of tasks from number `first` on with an environment that misbehaves; return how many sound
    groups were stored.

    Every group must be stored and readable, or given up with a text that names it; nothing may be left running.
    """
    hostile.EPISODES.clear()
    tokenizer = character_tokenizer()
    if first // 1000 % 2:
        tokenizer.chat_template = CHAT_TEMPLATE
    settings = parse(
        {
            "rollout": {
                "group_size": 2, "max_tokens": 8, "max_turns": 4, "environment_timeout_s": 0.5, "concurrent_groups": 64
            },
            "engine": {"max_model_len": Dice.max_model_len},
        }
    )  # fmt: skip
    buffer, failures, unhandled = MemoryBuffer(count), Failures(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    before = asyncio.all_tasks()

    def worker(policy: str, **options) -> RolloutWorker:
        return RolloutWorker(
            f"rollout-{policy}",
            policy=policy,
            engine=Dice(),  # type: ignore[arg-type]
            chat=Chat(tokenizer),
            environment=cls(seed=0),  # type: ignore[call-arg]
            task_at=lambda position: task_at(first + position),
            buffer=buffer,  # type: ignore[arg-type]
            config=settings,
            fetch=None,  # type: ignore[arg-type]
            **options,
        )

    meets = issubclass(cls, MultiPolicyEnvironment)
    other = worker("b", claims=False)
    one = worker("policy", others={"b": other.play} if meets else {})
    logger = logging.getLogger("actors.rollout")
    logger.addHandler(failures)
    logger.propagate = False
    quiet = [logging.getLogger(name) for name in ("cluster", "asyncio")]
    for other_logger in quiet:
        other_logger.setLevel(logging.CRITICAL)
    try:
        async with asyncio.timeout(60 + count), asyncio.TaskGroup() as running:
            works = [running.create_task(w.run()) for w in (one, other)]
            while not buffer.done:
                await asyncio.wait(works, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                assert not any(work.done() for work in works), failures.texts[-3:]
            await one.stop()
            await other.stop()
    finally:
        logger.removeHandler(failures)
        logger.propagate = True
        for other_logger in quiet:
            other_logger.setLevel(logging.NOTSET)
        asyncio.get_running_loop().set_exception_handler(None)
    assert not unhandled
    if left := asyncio.all_tasks() - before:  # cancelled, and about to end
        await asyncio.wait(left, timeout=5)
    assert asyncio.all_tasks() == before
    check(buffer, failures.texts, first, two_policies=meets)
    return len(buffer.groups)


def check(buffer: MemoryBuffer, texts: list[str], first: int, *, two_policies: bool) -> None:
    """Every group is sound, or its failure is named."""
    assert set(buffer.given_up.values()) <= {"data_failure"}
    named = {text.split(" dropped: ")[0].removeprefix("group policy/1/"): text for text in texts}
    for seq in buffer.given_up:
        text = named[str(seq)]
        assert len(text) < 2000
        assert "\n" not in text
        text.encode()
        assert f"task t{first + seq}" in text
    for seq, data in buffer.groups.items():
        group = decode(data, Group)
        assert encode(group) == data
        assert encode(group.task) == encode(task_at(first + seq))
        assert {r.policy for r in group.rollouts} <= {"policy", "b"} if two_policies else {"policy"}
        hostile_groups.use(group)


@pytest.mark.filterwarnings("ignore")  # of coroutines and generators that are left half-way
@pytest.mark.parametrize("cls", hostile.ALL, ids=lambda cls: cls.__name__)
async def test_environments_that_misbehave_at_random(cls):
    assert 10 < await misbehave(cls, 0, 200) < 190, "some of both kinds"
