"""Tools are shown by the model's own template, and calls are read in its family's spelling or answered with why not."""

from __future__ import annotations

import pytest

from actors.chat import Chat
from actors.environments import End, Environment, Observation
from actors.episode import Limits, play
from actors.tools import PolicyTurn, ToolCall, Tools, check_call, check_schemas
from cluster.errors import ConfigError, DataError
from cluster.types import Message, Task
from tests.actors.test_chat import CHATML, tokenizer
from tests.actors.typist import Letters, Typist

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
WITH_TOOLS = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}" + CHATML
ASKED = (Message("user", "1+1=?"),)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 1}}</tool_call>'


def test_tools_are_written_by_the_template():
    made = tokenizer(WITH_TOOLS)
    chat = Chat(made)
    assert "Add two numbers." in made.decode(chat.prompt(ASKED, (ADD,)))
    assert "Add two numbers." not in made.decode(chat.prompt(ASKED))
    assert "Add two numbers." not in made.decode(chat.observation([Message("tool", "2")], after=0, tools=(ADD,)))


def test_a_template_without_tools_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"leaves out the tool 'add'\. .*rollout\.tool_parser = 'prompt'"):
        Chat(tokenizer(CHATML)).prompt(ASKED, (ADD,))
    with pytest.raises(ConfigError, match=r"chat template is missing.*'prompt'"):
        Chat(tokenizer(None)).prompt(ASKED, (ADD,))


@pytest.mark.parametrize("template", [CHATML, None])
def test_prompt_writes_tools_and_results_for_any_model(template):
    made = tokenizer(template)
    chat = Chat(made, tool_parser="prompt")
    first = made.decode(chat.prompt((Message("system", "Be brief."), *ASKED) if template else ASKED, (ADD,)))
    assert first.index("Add two numbers.") < first.index("1+1=?")
    later = made.decode(chat.observation([Message("tool", "2")], after=0, tools=(ADD,)))
    assert "<tool_response>\n2\n</tool_response>" in later
    assert "Add two numbers." not in later


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("<tool_call>", "hermes"),
        ("<tool_call><function=x><parameter=y>", "qwen3_coder"),
        ("[AVAILABLE_TOOLS][TOOL_CALLS]", "mistral"),
        ('ipython "parameters": {}', "llama3_json"),
        ("<arg_key> <tool_call>", "glm45"),
    ],
)
def test_the_template_tells_the_family(template, family):
    assert Tools(tokenizer(template)).family == family


def test_an_unknown_family_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"knows no tools.*Name a parser of vLLM, or use 'prompt'"):
        _ = Tools(tokenizer(CHATML)).family


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (ToolCall("add", {"a": 1, "b": 1}), ""),
        (ToolCall("ad", {}), "There is no tool 'ad'. Did you mean 'add'"),
        (ToolCall("add", {"a": 1}), "'b' is a required property"),
        (ToolCall("add", {"a": 1, "b": "x"}), "add: b: 'x' is not of type 'integer'"),
    ],
)
def test_a_call_is_checked_against_the_schema(call, words):
    answer = check_call(call, (ADD,))
    assert words in answer
    assert bool(words) == bool(answer)


@pytest.mark.parametrize("wrong", [[3], [{}], [{"function": {}}], [ADD, ADD]])
def test_what_is_no_tool_is_named(wrong):
    with pytest.raises(DataError, match=r"tools\[\d\]"):
        check_schemas(wrong)


class Adds(Environment):
    """Answers calls of `add` until the policy makes none."""

    async def play(self, task, variant):
        said = yield Observation(task.variants[variant], tools=(ADD,))
        while said.turn.calls or said.turn.error:
            result = said.turn.error or str(sum(said.turn.calls[0].arguments.values()))
            said = yield Observation.of(result, role="tool")
        assert isinstance(said, PolicyTurn)
        yield End(answer=said.turn.text)


class WithTools(Letters):
    def __init__(self) -> None:
        self.tools = Tools(tokenizer(WITH_TOOLS))

    def tool_turn(self, text, tools):
        return self.tools.parse(text, tools)


@pytest.mark.engine  # the parsers are vLLM's, which takes ten seconds to import
async def test_an_environment_gets_calls_and_what_cannot_be_read():
    texts = iter(("<think>" + CALL + "</think>" + CALL, '<tool_call>{"name": "add", "arg', "It is 2."))
    rollout = await play(
        Typist(lambda _: next(texts)),  # type: ignore[arg-type]
        WithTools(),  # type: ignore[arg-type]
        Adds(),
        Task.of("t", "1+1=?"),
        "orig",
        Limits(100, 5, 1.0),
    )
    assert rollout.answer == "It is 2."
    shown = [turn.text for turn in rollout.turns if turn.role == "tool"]
    assert shown == ["2", "The tool call cannot be read. Write it again in the expected form."]


def test_null_fits_an_argument_that_is_nullable():
    kinds = {
        "name": {"type": "string", "nullable": True},
        "size": {"type": ["integer", "number"], "nullable": True},
        "kind": {"type": "string", "enum": ["line", "circle"], "nullable": True},
        "at": {"type": "object", "properties": {"x": {"type": "number", "nullable": True}}},
    }
    tool = {"type": "function", "function": {"name": "draw", "parameters": {"type": "object", "properties": kinds}}}
    right = {"name": None, "size": None, "kind": None, "at": {"x": None}}
    assert check_call(ToolCall("draw", right), (tool,)) == ""
    assert check_call(ToolCall("draw", {"name": "a", "size": 1.5, "kind": "line", "at": {"x": 2}}), (tool,)) == ""
    wrong = check_call(ToolCall("draw", {"name": 3}), (tool,))
    assert wrong == "draw: name: 3 is not of type 'string', 'null'."
    assert check_call(ToolCall("draw", {"kind": "cube"}), (tool,)).startswith("draw: kind: 'cube' is not")
    assert check_call(ToolCall("draw", {"at": None}), (tool,)).startswith("draw: at: None is not of type 'object'")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("family", "template", "text", "calls"),
    [
        ("hermes", "", f"Let me see. {CALL}", 1),
        ("hermes", "", CALL + CALL, 2),
        ("hermes", "", "<tool_call>{}</tool_call>", None),
        ("hermes", "", '<tool_call>{"name": "add", "arguments": 3}</tool_call>', None),
        ("hermes", "", "no call", 0),
        ("hermes", "", "<think>" + CALL, 0),
        (
            "qwen3_coder",
            "",
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
            1,
        ),
        ("pythonic", "", "[add(a=1, b=2)]", 1),
    ],
)
def test_calls_are_read_by_family(family, template, text, calls):
    turn = Tools(tokenizer(template), family).parse(text, (ADD,))
    assert len(turn.calls) == (calls or 0)
    assert bool(turn.error) == (calls is None)
    assert all(call.name == "add" for call in turn.calls)


@pytest.mark.engine
def test_a_parser_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="does not fit the model's tokenizer: RuntimeError"):
        Tools(tokenizer(CHATML), "llama3_json").check()
    with pytest.raises(ConfigError, match=r"'hermez' is no parser of vLLM\. Did you mean 'hermes'"):
        Tools(tokenizer(CHATML), "hermez").check()
