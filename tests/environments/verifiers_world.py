"""Verifiers environments, run by the Python of .environments/verifiers: a card game of two players, sums with a tool.

`python tests/environments/verifiers_world.py cards` serves one of them and prints its address.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.serve import EnvServer
from verifiers.v1.utils.loaders import resolve_env_config

__all__ = ["Cards", "Loop", "Worlds"]
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


class Data(vf.TaskData):
    cards: list[int] = []
    answer: str | None = None


class World(vf.Task[Data]):
    @vf.reward(weight=0.5)
    async def right(self, trace: vf.Trace) -> float:
        return 2.0 * (self.data.answer is not None and trace.last_reply.strip() == self.data.answer)


class Config(vf.TasksetConfig):
    pass


class Worlds(vf.Taskset[World, Config]):
    def load(self) -> list[World]:
        return []


class LoopConfig(vf.HarnessConfig):
    pass


class Loop(vf.Harness[LoopConfig]):
    """A chat loop in the server's process, with a tool for tasks that have an answer."""

    APPENDS_SYSTEM_PROMPT = SUPPORTS_RESUME = True
    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        prompt = data.prompt
        messages = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(message_to_wire, prompt))
        )
        tools = {"tools": [ADD]} if trace.task.data.answer is not None else {}
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client:
            while True:
                body = {"model": ctx.model, "messages": messages, **tools}
                answer = await client.post(f"{endpoint.rstrip('/')}/chat/completions", json=body)
                if answer.is_error:
                    return vf.ProgramResult(exit_code=1, stdout="", stderr=answer.text)
                message = answer.json()["choices"][0]["message"]
                messages.append(message)
                for call in message.get("tool_calls") or []:
                    result = str(sum(json.loads(call["function"]["arguments"]).values()))
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
                if messages[-1]["role"] != "tool":
                    return vf.ProgramResult(exit_code=0, stdout="", stderr="")


SEAT = vf.AgentConfig(harness={"id": "verifiers_world"}, runtime={"type": "subprocess"})


class CardsConfig(vf.EnvConfig):
    first: vf.AgentConfig = SEAT
    second: vf.AgentConfig = SEAT


class Cards(vf.Env[CardsConfig]):
    """Each seat sees its card and says bet or fold; then each hears what the other said, and says so again."""

    async def run(self, task, agents):
        players = []
        for name, card in zip(("first", "second"), task.data.cards, strict=True):
            players.append(
                (name, type(task)(task.data.model_copy(update={"prompt": f"Your card: {card}."}), task.config))
            )
        async with agents.first.interaction(players[0][1]) as one, agents.second.interaction(players[1][1]) as two:
            opening, answer = (await one.turn()).last_reply, (await two.turn()).last_reply
            await one.turn(f"They say {answer}.")
            await two.turn(f"They say {opening}.")

    async def finalize(self, task, episode):
        first, second = task.data.cards
        for trace in episode.traces:
            won = (first > second) == (trace.agent.name == "first")
            trace.record_reward("won", 1.0 if won else -1.0, 1.0)


async def main(world: str) -> None:
    pair = {"id": "single-agent", "agent": SEAT.model_dump()} if world == "sums" else {}
    config = resolve_env_config({"taskset": {"id": "verifiers_world"}, **pair})
    server = EnvServer(config, address="tcp://127.0.0.1:0")
    print(server.address, flush=True)
    await server.run()


if __name__ == "__main__":
    import verifiers_world

    asyncio.run(verifiers_world.main(sys.argv[1]))
