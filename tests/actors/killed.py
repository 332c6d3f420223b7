"""A rollout worker whose environment is a program, in a process that is killed."""

from __future__ import annotations

import asyncio
import os
import sys

from actors.environments.program import ProgramAgent
from actors.rollout import RolloutWorker
from cluster.buffer import Buffer
from cluster.config import parse
from cluster.types import Task
from tests.actors.agents import Scripted, chat

ANSWER = "the four is"
PROGRAM = """
import http.client, json, os, sys
task, messages = json.load(sys.stdin), []
host, _, prefix = os.environ["OPENAI_BASE_URL"].removeprefix("http://").partition("/")
connection = http.client.HTTPConnection(host)
for _ in range(3):
    messages.append({"role": "user", "content": task["prompt"]})
    key = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    body = json.dumps({"model": "policy", "messages": messages})
    connection.request("POST", f"/{prefix}/chat/completions", body, key)
    messages.append(json.load(connection.getresponse())["choices"][0]["message"])
"""


class Slow(Scripted):
    async def sample(self, prompt, **how):
        await asyncio.sleep(0.02)
        return await super().sample(prompt, **how)


def work(buffer: Buffer, name: str) -> None:
    """Claim, play and put until killed."""
    made = chat()
    engine = Slow(made, lambda prompt: ANSWER)
    settings = parse({"rollout": {"group_size": 2, "concurrent_groups": 4, "max_turns": 3, "lease_s": 30}})
    environment = ProgramAgent(command=(sys.executable, "-S", "-E", "-c", PROGRAM))
    os.setpgid(0, 0)

    async def main() -> None:
        publication = buffer.published("policy", timeout_s=10)
        assert publication is not None
        engine.version = publication.version

        async def follow(publication) -> str:
            return ""

        async def update(publication, path) -> float:
            engine.version = publication.version
            return 0.0

        engine.update = update  # type: ignore[attr-defined]
        worker = RolloutWorker(
            name,
            policy="policy",
            engine=engine,  # type: ignore[arg-type]
            chat=made,
            environment=environment,
            task_at=lambda i: Task.of(str(i), f"{i}?"),
            buffer=buffer,
            config=settings,
            fetch=follow,
        )
        await worker.run()

    asyncio.run(main())
