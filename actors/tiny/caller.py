"""`tiny:caller`: the model `tiny:calculator`, with a chat template that knows tools.

The template shows tools by their names and writes calls as Hermes models do, so that an agent on OpenAI's client meets
what it meets with a large model: `tools`, `tool_calls`, and messages of role `tool`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from actors.tiny.calculator import CalculatorModel
from actors.tiny.character import Part

CALLING = {"[": '<tool_call>{"name": "calculate", "arguments": {"expression": "', "]": '"}}</tool_call>'}
"""What stands around the expression of a call, in place of brackets."""


class CallerModel(CalculatorModel):
    """Learns from conversations: large sums go to the tool of deploy/recipes/data/agent.py, small ones are guessed."""

    name: ClassVar[str] = "tiny:caller"
    words: ClassVar[tuple[str, ...]] = tuple(CALLING.values())
    template: ClassVar[str] = (
        "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}"
        "{% for call in message.tool_calls or [] %}<tool_call>{{ {'name': call.function.name, 'arguments': "
        "call.function.arguments} | tojson }}</tool_call>{% endfor %}{{ eos_token }}"
        "{% elif message.role == 'tool' %}={{ message.content }};{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )

    def key(self) -> dict[str, Any]:
        return super().key() | {"words": self.words, "template": self.template}

    def seen(self, parts: list[Part]) -> list[Part]:
        (question, _), *others = parts
        return [(f"calculate {question}", False), *((_called(text) if ours else text, ours) for text, ours in others)]


def _called(text: str) -> str:
    for bracket, word in CALLING.items():
        text = text.replace(bracket, word)
    return text
