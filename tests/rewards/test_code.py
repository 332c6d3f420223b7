"""Programs against test cases in the columns of verl and prime-rl, and programs that try to pass without solving."""

import json
import time

import pytest
import pytest_asyncio

from cluster.config import RewardSection
from cluster.types import ABSTAINED, FAILED
from rewards.base import Services
from rewards.cases import cases_of, program_of, same_output
from rewards.registry import build_reward
from rewards.sandbox.launch import refusal
from tests.rewards.groups import group

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(refusal()), reason=refusal()),
]

STDIN = "a, b = map(int, input().split())\nprint(a + b)"
FUNCTION = "def add(a, b):\n    return a + b"
METHOD = "class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        return a + b"
CASES = [("1 2\n", "3\n"), ("4 5\n", "9\n"), ("10 20\n", "30\n")]
FORMS = {
    "verl's inputs and outputs": ({"inputs": [c[0] for c in CASES], "outputs": [c[1] for c in CASES]}, STDIN),
    "verl's lines as lists": ({"inputs": [["1 2"], ["4 5"]], "outputs": [["3"], ["9"]]}, STDIN),
    "verl's fn_name": ({"inputs": ["1\n2", "4\n5"], "outputs": ["3", "9"], "fn_name": "add"}, FUNCTION),
    "APPS' wrapped outputs": ({"inputs": [[1, 2], [4, 5]], "outputs": [[3], [9]], "fn_name": "add"}, METHOD),
    "prime-rl's test cases": (
        {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": i, "output": o} for i, o in CASES]},
        STDIN,
    ),
    "prime-rl's function calls": (
        {"test_cases": [{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": 3}]},
        FUNCTION,
    ),
    "prime-rl's deepcoder": (
        {"dataset_type": "primeintellect", "ground_truth": json.dumps([{"input": "1 2", "output": "3"}])},
        STDIN,
    ),
    "LiveCodeBench": (
        [{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}],
        METHOD,
    ),
    "assert cases": ({"assert_case": ["assert add(1, 2) == 3", "assert add(4, 5) == 9"]}, FUNCTION),
    "MBPP's list": (["assert add(1, 2) == 3", "assert add((1,), (2,)) == (1, 2)"], FUNCTION),
    "functional tests": ({"functional": "def check(f):\n    assert f(1, 2) == 3\ncheck(add)"}, FUNCTION),
    "HumanEval": ({"test": "def check(c):\n    assert c(1, 2) == 3\n", "entry_point": "add"}, FUNCTION),
    "plain tests": ("from math import isclose\nassert isclose(add(0.1, 0.2), 0.3)", FUNCTION),
}
WRONG = "print(7)\ndef add(a, b):\n    return 7"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services():
    made = Services()
    yield made
    made.close()


async def scores_of(services, reference, *programs, **options):
    reward = build_reward(RewardSection(use="code", options=options), "rewards[0]")
    answer = reference if isinstance(reference, str) or reference is None else json.dumps(reference)
    return await reward.score(group(*programs, answer=answer), services)


def fenced(program):
    return f"<think>```python\nno\n```</think>Here it is:\n```python\n{program}\n```\nIt adds."


@pytest.mark.parametrize("form", FORMS)
async def test_a_right_program_passes_and_a_wrong_one_does_not(form, services):
    reference, program = FORMS[form]
    scores = await scores_of(services, reference, fenced(program), fenced(WRONG), "no program at all")
    assert scores.values.tolist() == [1, 0, 0]


async def test_partial_credit_is_the_share_of_cases(services):
    reference, _ = FORMS["verl's inputs and outputs"]
    once = "print(3)"
    assert (await scores_of(services, reference, once)).values.tolist() == [0]
    assert (await scores_of(services, reference, once, partial=True)).values.tolist() == [1 / 3]
    assert (await scores_of(services, reference, once, partial=True, max_cases=1)).values.tolist() == [1]


CHEATS = {
    "an early exit": "import sys; sys.exit(0)",
    "a harder exit": "import os; os._exit(0)",
    "an object that equals everything": (
        "class A:\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: 1\n    __getattr__ = lambda s, n: s\n"
        "    __call__ = lambda s, *a: s\nadd = A()\nadd = lambda *a: A()"
    ),
    "a number that equals everything": (
        "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\nadd = lambda *a: I(0)"
    ),
    "a forged answer": "import os\nfor fd in (1, 3): os.write(fd, b'{\"value\": true}')\nos._exit(0)",
    "a patched encoder": (
        "import sys\nm = sys.modules['rewards.sandbox.programs']\nm.encoded = lambda v: 'x'\nadd = lambda *a: 0"
    ),
    "the tests' own file": "print(open('/etc/passwd').read())",
    "nothing": "",
    "an endless loop": "while True: pass",
    "much output": "while True: print('3' * 10000)",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "much memory": "x = bytearray(10 << 30)",
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("form", ["verl's inputs and outputs", "verl's fn_name", "MBPP's list", "HumanEval"])
async def test_a_program_that_does_not_solve_it_does_not_pass(cheat, form, services):
    begun = time.monotonic()
    right = FORMS[form][1]
    scores = await scores_of(services, FORMS[form][0], fenced(CHEATS[cheat]), fenced(right), case_timeout_s=1.5)
    assert scores.values.tolist() == [0, 1]
    assert time.monotonic() - begun < 60


async def test_without_cases_it_abstains_and_unreadable_ones_fail_with_what_is_wrong(services):
    assert (await scores_of(services, None, STDIN)).state.tolist() == [ABSTAINED]
    for reference in ("85 apples", "85", "{}", '{"inputs": ["1"], "outputs": []}', "[1, 2]"):
        scores = await scores_of(services, reference, STDIN)
        assert scores.state.tolist() == [FAILED]
        assert any(word in scores.provenance[0].note for word in ("reference", "inputs", "test case"))


async def test_the_last_python_block_is_the_program():
    assert program_of("```python\na\n```\n```python\nb\n```\n```\noutput\n```") == "b"
    assert program_of("```\na\n```") == "a"
    assert program_of("print(1)") == "print(1)"
    assert program_of("x\n```python\nprint(1)") == "print(1)"


async def test_outputs_are_compared_as_judges_do():
    assert same_output("1 \n2\n\n", "1\n2")
    assert same_output("0.3333333", "0.33333331")
    assert not same_output("3", "4")
    assert not same_output("12", "1 2")
    assert not same_output("1000000", "1000001")


async def test_asserts_with_plain_values_are_decided_outside():
    cases = cases_of("assert f(1) == {'a': (1, 2)}\nassert f(2) is None\nassert f(3) > 1")
    assert [case.kind for case in cases] == ["equal", "equal", "tests"]


UNTRUSTED = """
def evaluated(prompt, completion, answer):
    return float(eval(completion) == eval(answer))
def batched(completions, answer, **kwargs):
    return [float(eval(c) == eval(a)) for c, a in zip(completions, answer)]
async def later(completion):
    return {"score": eval(completion)}
def whole(rollout):
    return 1.0
"""


@pytest.fixture
def functions(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(UNTRUSTED)
    return file


def untrusted(functions, name):
    section = RewardSection(use=f"{functions}:{name}", untrusted=True, timeout_s=15)
    return build_reward(section, "rewards[0]")


async def test_a_function_that_is_marked_untrusted_runs_in_the_sandbox(functions, services, tmp_path):
    reward = untrusted(functions, "evaluated")
    assert reward.evaluates()
    touched = tmp_path / "touched"
    attack = f"__import__('pathlib').Path({str(touched)!r}).write_text('x')"
    scores = await reward.score(group("80 + 5", "1", attack, "open('/etc/passwd')", answer="85"), services)
    assert scores.values[:2].tolist() == [1, 0]
    assert scores.state[2:].tolist() == [FAILED, FAILED]
    assert not touched.exists()
    assert (await untrusted(functions, "later").score(group("0.5"), services)).values.tolist() == [0.5]
    assert (await untrusted(functions, "batched").score(group("85", "1"), services)).values.tolist() == [1, 0]


async def test_untrusted_is_refused_where_it_cannot_be_kept(functions):
    from cluster.errors import ConfigError

    with pytest.raises(ConfigError, match="takes 'rollout'"):
        untrusted(functions, "whole")
    with pytest.raises(ConfigError, match="is a class"):
        build_reward(RewardSection(use="exact", untrusted=True), "rewards[0]")
