"""An agent on OpenAI's client: the policy may call a calculator as often as it likes; its answer's last number counts.

An answer that the policy gives without a call is forgotten once: the conversation begins anew. Of Kanabo the agent
knows only how it is started. The environment `function` calls `solve`; for the environment `program`, the agent reads
the task from standard input and writes its reward to the file that KANABO_REWARD_FILE names.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from types import SimpleNamespace
from typing import Any

from openai import AsyncOpenAI

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Work out a sum or a difference of whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "such as 12 - 5"}},
            "required": ["expression"],
        },
    },
}
UNREADABLE = "This call of a tool cannot be read. Write it again as JSON, or give the answer."
MOST_TERMS = 2


def calculate(call: Any) -> str:
    """Return the result of a call, or what is wrong with it, which the policy reads."""
    if call.function.name != TOOL["function"]["name"]:
        return f"Error: no tool '{call.function.name}'."
    expression = str(json.loads(call.function.arguments).get("expression", "")).replace(" ", "")
    numbers = re.findall(r"[+-]?\d{1,9}", expression)
    if not 1 <= len(numbers) <= MOST_TERMS or "".join(numbers) != expression:
        return f"Error: {expression!r:.40} is no sum of {MOST_TERMS} whole numbers."
    return str(sum(map(int, numbers)))


async def solve(client: AsyncOpenAI, task: Any, model: str = "policy") -> dict[str, Any]:
    """Make the policy's calls until a turn has none, and return the reward and the answer."""
    messages: list[Any] = [{"role": "user", "content": task.prompt}]
    called = again = False
    while True:
        answer = await client.chat.completions.create(model=model, messages=messages, tools=[TOOL])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if message.tool_calls:
            called = True
            for call in message.tool_calls:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": calculate(call)})
        elif "<tool_call>" in (message.content or ""):
            messages.append({"role": "user", "content": UNREADABLE})
        elif called or again:
            break
        else:
            messages, again = messages[:1], True
    numbers = re.findall(r"-?\d+", message.content or "")
    said = numbers[-1] if numbers else None
    return {"reward": float(said == task.answer), "answer": said}


def main() -> None:
    task = SimpleNamespace(**json.load(sys.stdin))
    outcome = asyncio.run(solve(AsyncOpenAI(), task, os.environ["OPENAI_MODEL"]))
    with open(os.environ["KANABO_REWARD_FILE"], "w", encoding="utf-8") as file:
        json.dump(outcome, file)


if __name__ == "__main__":
    main()
