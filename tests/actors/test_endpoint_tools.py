"""Tools of OpenAI clients: the policy's calls are shown as calls, and go back to it as the tokens that it wrote."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import replace
from typing import Any

import openai
import pytest

from actors.chat import Chat
from actors.environments import ENVIRONMENTS
from actors.tools import ToolCall, ToolTurn
from cluster.config import load
from cluster.plugins import build
from cluster.thoughts import spoken
from cluster.types import INVALID_TOOL_CALL, Task
from tests.actors.agents import LIMITS, Scripted, merging, played
from tests.actors.test_chat import CHATML
from tests.actors.test_endpoint import USER, Agent, agent, check_sampled
from tests.actors.test_tools import ADD

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes calls as OpenAI's clients send them back: with other space and another order than the policy's."""
STRICT = (
    "{% set ns = namespace(user=true) %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}"
    "{% if (m.role == 'user') != ns.user %}{{ raise_exception('users and assistants must alternate') }}{% endif %}"
    "{% set ns.user = not ns.user %}{% endif %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[RESULTS]{{ m.content }}[/RESULTS]"
    "{% elif m.tool_calls %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('an id of 9') }}"
    "{% endif %}[TOOL_CALLS]{{ c.function | tojson }}{% endfor %}<|endoftext|>"
    "{% else %}{{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
)
"""Refuses a result behind an assistant's turn that is text, as Mistral's templates do."""
FORGETS = TEMPLATE.replace("{% for c in m.tool_calls or [] %}", "{% for c in [] %}")
"""Shows tools and leaves out the calls."""
LONG = replace(LIMITS, max_tokens=256)
SPELLED = '<tool_call>{"arguments":{"b":1,  "a":2},"name":"add"}</tool_call>'
BROKEN = 'Hm. <tool_call>{"name": "add", "arguments": {"a": 1</tool_call>'


class Reads(Chat):
    """In place of vLLM's parsers, whose import takes seconds."""

    def check_tools(self) -> None: ...

    def tool_turn(self, text, tools):
        said = spoken(text)
        try:
            found = [json.loads(call) for call in re.findall("<tool_call>(.*?)</tool_call>", said, re.DOTALL)]
        except ValueError:
            return ToolTurn(said, error="The tool call cannot be read.")
        calls = tuple(ToolCall(call["name"], call["arguments"]) for call in found)
        return ToolTurn(said.partition("<tool_call>")[0].strip(), calls)


def reading(write: Any, template: str | None = TEMPLATE, tool_parser: str = "auto", **options: Any) -> Any:
    return agent(write, made=Reads(merging(template), tool_parser=tool_parser), limits=LONG, **options)


def then(*turns: str) -> Any:
    left = iter(turns)
    return lambda prompt: next(left)


async def ask(a: Agent, messages: list[Any], **how: Any) -> Any:
    answer = await a.client.chat.completions.create(model="policy", messages=messages, tools=[ADD], **how)  # type: ignore
    return answer.choices[0]


async def loop(a: Agent, turns: int) -> list[Any]:
    """An agent as the documentation of OpenAI's client has it: it makes the calls and sends the answer back."""
    messages: list[Any] = [*USER]
    for _ in range(turns):
        message = (await ask(a, messages)).message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            result = sum(json.loads(call.function.arguments).values())
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    return messages


async def test_a_call_comes_as_a_call_and_goes_back_as_the_tokens_that_were_sampled():
    async with reading(then(f"I add. {SPELLED}", "four")) as a:
        choice = await ask(a, [*USER])
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add.")
        assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
            "function",
            "add",
            {"a": 2, "b": 1},
        )
    async with reading(then(f"I add. {SPELLED}", f"{SPELLED}{SPELLED}", "four")) as a:
        await loop(a, 3)
        (rollout,) = a.rollouts()
        assert [t.role for t in rollout.turns] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
        assert rollout.text == f"I add. {SPELLED}\n{SPELLED}{SPELLED}\nfour"
        assert tuple(rollout.tokens.tolist()) == a.engine.record[2][0] + a.engine.record[2][1]
        assert rollout.turns[4].text == "3\n3"
        assert not rollout.events


@pytest.mark.parametrize("template", [STRICT, FORGETS])
async def test_a_template_that_writes_calls_its_own_way_goes_on_with_the_rollout(template):
    async with reading(then(f"I add. {SPELLED}", f"<think>b</think>{SPELLED}{SPELLED}", "four"), template) as a:
        await loop(a, 3)
        (rollout,) = a.rollouts()
        assert [t.role for t in rollout.turns] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
        assert tuple(rollout.tokens.tolist()) == a.engine.record[2][0] + a.engine.record[2][1]
        end = "<|endoftext|>" if template == STRICT else "<|im_end|>"
        assert a.engine.chat.text(rollout.tokens).count(SPELLED) == 3
        assert a.engine.chat._tokenizer.decode(rollout.tokens).count(end) == (3 if template == STRICT else 7)


async def test_a_stream_holds_the_calls_and_goes_on_with_the_rollout():
    async with reading(then(f"{SPELLED}{SPELLED}", "four")) as a:
        stream = await a.client.chat.completions.create(
            model="policy",
            messages=USER,
            tools=[ADD],
            stream=True,
            logprobs=True,  # type: ignore
        )
        calls: dict[int, dict[str, Any]] = {}
        reasons, logprobs = [], 0
        async for chunk in stream:
            (choice,) = chunk.choices
            reasons += [choice.finish_reason] if choice.finish_reason else []
            logprobs += len(choice.logprobs.content) if choice.logprobs else 0
            for part in choice.delta.tool_calls or ():
                calls[part.index] = part.model_dump(exclude={"index"})
        assert (reasons, sorted(calls), logprobs) == (["tool_calls"], [0, 1], len(a.engine.record[0][1]))
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in calls.values()]
        await ask(a, [*USER, {"role": "assistant", "content": None, "tool_calls": list(calls.values())}, *results])
        assert len(a.rollouts()) == 1


async def test_a_call_that_is_made_twice_behind_other_thoughts_goes_on_with_the_rollout():
    async with reading(then(f"<think>a</think>{SPELLED}", f"<think>b</think>{SPELLED}", "four")) as a:
        messages = await loop(a, 3)
        (rollout,) = a.rollouts()
        assert rollout.text.startswith("<think>a</think>")
        assert "<think>" not in (messages[1].get("content") or "")


async def test_a_history_that_was_rewritten_opens_the_next_rollout():
    async with reading(then(SPELLED, "four", "five", "six")) as a:
        messages = await loop(a, 2)
        messages[1]["tool_calls"][0]["function"]["arguments"] = '{"a": 3, "b": 1}'
        await ask(a, messages[:3])
        await ask(a, [{"role": "system", "content": "Be brief."}, *messages[:3]])
        first, second, third = a.rollouts()
        assert [len(r.turns) for r in (first, second, third)] == [4, 2, 2]


async def test_a_client_may_number_calls_itself():
    async with reading(then(SPELLED, "four")) as a:
        message = (await ask(a, [*USER])).message.model_dump(exclude_none=True)
        message["tool_calls"][0]["id"] = "of-its-own"
        await ask(a, [*USER, message, {"role": "tool", "tool_call_id": "of-its-own", "content": "3"}])
        assert len(a.rollouts()) == 1


async def test_a_call_that_cannot_be_read_stays_text_and_is_counted():
    async with reading(then(BROKEN, SPELLED, BROKEN)) as a:
        choice = await ask(a, [*USER])
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (BROKEN, None, "stop")
        again = [*USER, {"role": "assistant", "content": BROKEN}, {"role": "user", "content": "Write it again."}]
        second = (await ask(a, again)).message
        assert second.tool_calls
        result = {"role": "tool", "tool_call_id": second.tool_calls[0].id, "content": "3"}
        await ask(a, [*again, second.model_dump(exclude_none=True), result])
        (rollout,) = a.rollouts()
        assert [(e.text, e.turn, e.count) for e in rollout.events] == [
            (INVALID_TOOL_CALL, 0, 1),
            (INVALID_TOOL_CALL, 2, 2),
        ]


async def test_a_call_out_of_tokens_is_no_call():
    async with reading(then(SPELLED)) as a:
        choice = await ask(a, [*USER], max_tokens=20)
        assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
        assert choice.message.content == SPELLED[:20]


async def test_without_a_choice_of_tools_a_call_is_text_and_the_prompt_is_the_same():
    async with reading(then(SPELLED, SPELLED)) as a:
        message = (await ask(a, [*USER])).message
        messages = [*USER, message.model_dump(exclude_none=True), {"role": "user", "content": "Say it."}]
        choice = await ask(a, messages, tool_choice="none")
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (SPELLED, None, "stop")
        assert len(a.rollouts()) == 1


@pytest.mark.parametrize("template", [CHATML, None])
async def test_a_model_without_tools_in_its_template_is_shown_them_in_the_prompt(template):
    async with reading(then(f"I add. {SPELLED}", "four"), template, tool_parser="prompt") as a:
        await loop(a, 2)
        (rollout,) = a.rollouts()
        assert [t.role for t in rollout.turns] == ["user", "assistant", "tool", "assistant"]
        prompt = a.engine.chat.text(a.engine.record[1][0])
        assert prompt.index("Add two numbers.") < prompt.index("2+2?")
        assert "<tool_response>\n3\n</tool_response>" in prompt


async def test_calls_of_another_model_are_written_as_text_in_the_prompt():
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    history = [
        *USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "x"},
    ]
    async with reading(then("four"), CHATML, tool_parser="prompt") as a:
        await ask(a, history)
        assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' in a.engine.chat.text(
            a.engine.record[0][0]
        )


CALLED: dict[str, Any] = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a call by force": ({"tool_choice": "required"}, 'tool_choice = "required" forces a call'),
    "a call by name": ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "forces a call"),
    "another word": ({"tool_choice": "perhaps"}, "tool_choice"),
    "one call alone": ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    "functions": ({"functions": [ADD["function"]]}, "use tools and tool_choice"),
    "no tool": ({"tools": [{"type": "web_search"}]}, r"tools\[0\] is no tool"),
    "no schema": (
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": [1]}}]},
        r"tools\[0\].function.parameters is \[1\]; a JSON schema",
    ),
    "two of a name": ({"tools": [ADD, ADD]}, "two tools of the name 'add'"),
    "calls that are no list": ({"messages": [*USER, {"role": "assistant", "tool_calls": 3}]}, "a list is expected"),
    "a call that is none": ({"messages": [*USER, {"role": "assistant", "tool_calls": [{}]}]}, "function.name"),
    "a function_call": ({"messages": [*USER, {"role": "assistant", "function_call": {"name": "x"}}]}, "use tool_calls"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name_and_the_episode_goes_on(name):
    how, message = REFUSED[name]
    async with reading(lambda prompt: "four") as a:
        with pytest.raises(openai.BadRequestError, match=message):
            await a.client.chat.completions.create(**{"model": "policy", "messages": USER, "tools": [ADD], **how})
        assert (await ask(a, [*USER])).message.content == "four"
        assert len(a.rollouts()) == 1


async def test_a_template_without_tools_is_refused_with_the_remedy():
    async with agent() as a:
        with pytest.raises(openai.BadRequestError, match=r"knows no tools.*or use 'prompt'"):
            await ask(a, [*USER])
        with pytest.raises(openai.BadRequestError, match=r"leaves out the call of tool 'add'.*rollout\.tool_parser"):
            await a.ask([*USER, {"role": "assistant", "tool_calls": [CALLED]}, *USER])
        assert await a.ask(USER) == "the four is"


@pytest.mark.parametrize("depth", [950, 970, 1500])
async def test_arguments_that_are_nested_too_deep_do_not_end_the_episode(depth):
    deep = CALLED | {"function": {"name": "add", "arguments": "[" * depth + "]" * depth}}
    async with reading(lambda prompt: "four", max_model_len=8192) as a:
        with contextlib.suppress(openai.BadRequestError):
            await ask(a, [*USER, {"role": "assistant", "tool_calls": [deep]}, {"role": "tool", "content": "?"}])
        assert (await ask(a, [*USER])).message.content == "four"
        assert not a.session.broken.done()


async def test_an_agents_rollouts_keep_their_calls_that_cannot_be_read():
    from actors.environments.function import FunctionAgent

    engine = Scripted(Reads(merging(TEMPLATE)), then(BROKEN, SPELLED, "four"))
    environment = FunctionAgent(function="tests.actors.agents:calls_tools")
    (rollout,) = await played(engine, environment, LONG)
    check_sampled([rollout], engine)
    assert (rollout.reward, rollout.answer) == (1.0, "four")
    assert [e.text for e in rollout.events] == [INVALID_TOOL_CALL]


async def test_the_program_of_the_shipped_recipe_makes_calls_and_gives_a_reward():
    options = load("deploy/recipes/gpu_agent.toml").rollout.environment.options
    assert options["command"][0] == "python"
    options = {**options, "command": [sys.executable, *options["command"][1:]]}
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "%s"}}</tool_call>'
    written = then("9", BROKEN, call % "2 + x", call % "12 - 5", call % "7+3", "12 - 5 + 3 = 10")
    engine = Scripted(Reads(merging(TEMPLATE)), written)
    environment = build(ENVIRONMENTS, "program", options, "rollout.environment")
    first, second = await played(engine, environment, LONG, Task.of("t", "12 - 5 + 3 =", "10"))
    check_sampled([first, second], engine)
    assert (first.text, first.reward) == ("9", 1.0), "what is forgotten has the reward of the episode"
    assert (second.reward, second.answer) == (1.0, "10")
    shown = [turn.text for turn in second.turns if turn.role != "assistant"]
    assert "cannot be read" in shown[1]
    assert shown[2:] == ["Error: '2+x' is no sum of 2 whole numbers.", "7", "10"]


@pytest.mark.engine  # the parsers are vLLM's, which takes ten seconds to import
async def test_vllms_parser_of_the_family_reads_the_calls():
    async with agent(then(f"I add. {SPELLED}", BROKEN, SPELLED), made=Chat(merging(TEMPLATE)), limits=LONG) as a:
        messages = await loop(a, 2)
        assert [call["function"]["name"] for call in messages[1]["tool_calls"]] == ["add"]
        odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": 3, "properties": ["x"]}}}
        with contextlib.suppress(openai.BadRequestError):
            await a.client.chat.completions.create(model="policy", messages=USER, tools=[odd])
        assert not a.session.broken.done()
        rollout = a.rollouts()[0]
        assert (messages[-1]["content"], [e.text for e in rollout.events]) == (BROKEN, [INVALID_TOOL_CALL])
