"""An agent as a program: the policy may call a calculator as often as it likes, and its answer's last number counts.

The program uses OpenAI's client as any agent does. Of Kanabo it knows two things: the task is a JSON object on standard
input, and the reward goes to the file that KANABO_REWARD_FILE names.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from openai import OpenAI

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


def calculate(arguments: str) -> str:
    """Return the result of a call, or what is wrong with its arguments, which the policy reads."""
    expression = str(json.loads(arguments).get("expression", ""))
    numbers = re.findall(r"[+-]?\d{1,9}", expression.replace(" ", ""))
    if not numbers or "".join(numbers) != expression.replace(" ", ""):
        return f"Error: {expression!r:.40} is no sum of whole numbers."
    return str(sum(map(int, numbers)))


def main() -> None:
    task = json.load(sys.stdin)
    client, model = OpenAI(), os.environ["OPENAI_MODEL"]
    messages: list[Any] = [{"role": "user", "content": task["prompt"]}]
    while True:
        answer = client.chat.completions.create(model=model, messages=messages, tools=[TOOL])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if message.tool_calls:
            for call in message.tool_calls:
                known = call.function.name == TOOL["function"]["name"]
                result = calculate(call.function.arguments) if known else f"Error: no tool '{call.function.name}'."
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        elif "<tool_call>" in (message.content or ""):
            messages.append({"role": "user", "content": UNREADABLE})
        else:
            break
    numbers = re.findall(r"-?\d+", message.content or "")
    right = bool(numbers) and numbers[-1] == task["answer"]
    with open(os.environ["KANABO_REWARD_FILE"], "w", encoding="utf-8") as file:
        json.dump({"reward": float(right), "answer": numbers[-1] if numbers else None}, file)


if __name__ == "__main__":
    main()
