"""Tests that are code: they examine a program that runs in another process and never learns what they expect."""

import json

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import RewardSection
from cluster.types import FAILED
from rewards.base import Services
from rewards.registry import build_reward
from rewards.sandbox import remote
from rewards.sandbox.launch import refusal
from tests.rewards.groups import group

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(refusal()), reason=refusal()),
]

RIGHT = "def add(a, b):\n    return a + b"
FORMS = {
    "HumanEval": {"test": "def check(c):\n    assert c(1, 2) == 3\n    assert c(4, 5) == 9", "entry_point": "add"},
    "plain": "from math import isclose\nassert isclose(add(1, 2), 3)\nassert abs(add(4, 5) - 9) < 1e-6",
    "unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(add(1, 2), 3)\n"
        "        self.assertAlmostEqual(add(4, 5), 9)"
    ),
    "unittest.main": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(add(1, 2), 3)\n"
        "        self.assertTrue(add(4, 5) == 9)\nunittest.main()"
    ),
    "pytest": {
        "pytest": "from solution import add\nimport pytest\n"
        "@pytest.mark.parametrize('a, b, c', [(1, 2, 3), pytest.param(4, 5, 9)])\n"
        "def test_it(a, b, c):\n    assert add(a, b) == c\nclass TestMore:\n    def test_more(self):\n"
        "        assert add(0, 0) == 0"
    },
    "a star": "from solution import *\nfrom math import isclose\nfor a, b, c in [(1, 2, 3), (4, 5, 9)]:\n"
    "    assert isclose(add(a, b), c) and abs(add(a, b) - c) < 1e-6 and all([add(a, b) == c])",
    "one for all": "pairs = [(1, 2), (4, 5)]\nassert list(map(lambda p: add(*p), pairs)) == [3, 9]",
    "zipped": "assert all(map(lambda p, r: add(*p) == r, [(1, 2), (4, 5)], [3, 9])), 'wrong'\nassert not add(0, 0)",
    "in a set": "assert add(1, 2) in {3}\nassert 9 in [add(4, 5)]",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services():
    made = Services()
    yield made
    made.close()


async def scored(services, reference, *programs, **options):
    reward = build_reward(RewardSection(use="code", options=options), "rewards[0]")
    answer = reference if isinstance(reference, str) else json.dumps(reference)
    return await reward.score(group(*(f"```python\n{p}\n```" for p in programs), answer=answer), services)


ANYTHING = "class A:\n    def _yes(self, *a): return True\n    def _self(self, *a): return self\n" + "".join(
    f"    __{name}__ = {'_yes' if name in ('eq', 'lt', 'le', 'gt', 'ge', 'contains', 'bool') else '_self'}\n"
    for name in ("eq", "lt", "le", "gt", "ge", "contains", "bool", "sub", "rsub", "add", "radd", "abs", "iter", "call")
)
CHEATS = {
    "an exit": "import sys\ndef add(a, b): sys.exit(0)",
    "an exit before the tests": "import sys; sys.exit(0)",
    "a hard exit": "import os\ndef add(a, b): os._exit(0)",
    "an exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): raise SystemExit(0)",
    "the end of an iteration": "def add(a, b): raise StopIteration",
    "the end of an asynchronous one": "def add(a, b): raise StopAsyncIteration",
    "a skipped test": "import unittest\ndef add(a, b): raise unittest.SkipTest('no')",
    "an object that agrees with all": f"{ANYTHING}    __hash__ = lambda s: hash(3)\ndef add(a, b): return A()",
    "a class that agrees with all": f"{ANYTHING}    __new__ = lambda c, *a: object.__new__(c)\nadd = A",
    "a number that agrees with all": (
        "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: hash(3)\n"
        "    __sub__ = lambda s, o: 0\n    __rsub__ = __sub__\ndef add(a, b): return I(0)"
    ),
    "a text that agrees with all": (
        "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = lambda s: hash(3)\ndef add(a, b): return S()"
    ),
    "patched builtins": (
        "import builtins, math, unittest\nbuiltins.all = builtins.any = lambda *a: True\nbuiltins.abs = lambda x: 0\n"
        "abs = lambda x: 0\nall = any = isclose = math.isclose = lambda *a, **k: True\n"
        "unittest.TestCase.assertEqual = unittest.TestCase.assertAlmostEqual = lambda *a: None\n"
        "def check(c): pass\n__name__ = '__main__'\ndef add(a, b): return 0"
    ),
    "a trace that leaves frames": (
        "import sys\ndef t(frame, event, arg):\n    frame.f_trace_lines = False\n    return t\nsys.settrace(t)\n"
        "def add(a, b): return 0"
    ),
    "what lies on the stack and in memory": (
        "import gc, re, sys\ndef add(a, b):\n    seen = [s for s in gc.get_objects() if isinstance(s, (list, dict))]\n"
        "    frame = sys._getframe()\n    while frame:\n        seen += [frame.f_locals, frame.f_globals, "
        "frame.f_code.co_consts]\n        frame = frame.f_back\n    text = repr(seen)\n"
        "    return 3 if 'assertEqual' in text or 'c(4, 5)' in text else 0"
    ),
    "messages of its own": (
        "import os, json\ndef say(m):\n    d = json.dumps(m).encode()\n"
        "    os.write(4, len(d).to_bytes(8, 'little') + d)\n"
        '    os.write(3, b\'{"value": {"passed": true}}\')\n'
        "def add(a, b):\n    for m in ({'value': True}, {'passed': True}, {'end': True}, {'value': {'ref': 0}}):\n"
        "        say(m)\n    os._exit(0)"
    ),
    "a closed socket": "import os\nos.close(4)\ndef add(a, b): return 3",
    "a nested message": (
        "import os\ndef add(a, b):\n    d = b'[' * 100000\n    os.write(4, len(d).to_bytes(8, 'little') + d)\n"
        "    os._exit(0)"
    ),
    "a long message": "import os\nos.write(4, (1 << 60).to_bytes(8, 'little'))\ndef add(a, b): return 3",
    "arguments that it changes": "def add(a, b):\n    a = b = 0\n    return 3",
    "an endless loop": "def add(a, b):\n    while True: pass",
    "nothing": "",
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_right_program_passes_and_a_wrong_one_does_not(form, services):
    scores = await scored(services, FORMS[form], RIGHT, RIGHT.replace("+", "-"), "def add(a, b): return 3")
    assert scores.values.tolist() == [1, 0, 0], [p.note for p in scores.provenance]


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=() if f in ("HumanEval", "zipped") else pytest.mark.verify) for f in FORMS]
)
async def test_no_program_passes_without_solving_it(form, services):
    scores = await scored(services, FORMS[form], *CHEATS.values(), case_timeout_s=2.0)
    assert dict(zip(CHEATS, scores.values.tolist(), strict=True)) == dict.fromkeys(CHEATS, 0.0)


VALUES = """
import collections, datetime, decimal, fractions, math
import numpy as np
for value in (
    None, True, 1, -(10 ** 6000), 2.5, math.inf, "é\\ud800", [1, [2, (3, {4}, frozenset({5}))]],
    {"a": {1: 2}, (1, 2): 3},
    b"x", bytearray(b"y"), 1 + 2j, range(1, 9, 2), decimal.Decimal("0.1"), fractions.Fraction(1, 3), [],
    datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3), datetime.timedelta(days=1, seconds=2), (), set(),
    collections.deque([1, 2]), collections.Counter("aab"),
):
    back = same(value)
    assert back == value and type(back) in type(value).__mro__, value
assert list(same({"b": 1, "a": 2})) == ["b", "a"]
assert math.isnan(same(math.nan))
assert (same(np.arange(6).reshape(2, 3)) == np.arange(6).reshape(2, 3)).all()
assert same(np.float32(0.5)) == 0.5
"""
OBJECTS = """
import copy
stack = Stack([1])
assert isinstance(stack, Stack) and not isinstance(3, Stack)
stack.push(2); stack.push({"a": (1,)})
assert len(stack) == 3 and stack[0] == 1 and list(stack) == [1, 2, {"a": (1,)}] and 2 in stack
assert str(stack) == "a stack" and stack and not Stack()
stack.name = "s"
assert stack.name == "s" and stack == stack and Stack([7]) == Stack([7]) and stack != Stack()
assert (Stack([1]) + Stack([2])).items == [1, 2]
assert list(endless())[:0] == [] if False else next(iter(endless())) == 0
grid = [[1, 2], [3, 4]]
assert turn(grid) is None and grid == [[3, 1], [4, 2]]
counts = {}
fill(counts)
assert counts == {"a": 1}
try:
    stack.fail()
except ValueError as error:
    assert "no" in str(error)
else:
    assert False
try:
    stack[10]
except IndexError:
    pass
async def test_later():
    assert await later(3) == 4
"""
STACK = """
class Own(ValueError): pass
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __str__(self): return "a stack"
    def __eq__(self, other): return self.items == other.items
    def __add__(self, other): return Stack(self.items + other.items)
    def fail(self): raise Own("no")
def endless():
    n = 0
    while True:
        yield n
        n += 1
def turn(grid): grid[:] = [list(row) for row in zip(*grid[::-1])]
def fill(counts): counts["a"] = 1
async def later(x): return x + 1
"""


async def test_plain_values_cross_as_what_they_are(services):
    scores = await scored(services, VALUES, "def same(value):\n    return value", "def same(value):\n    return 1")
    assert scores.values.tolist() == [1, 0], [p.note for p in scores.provenance]


async def test_objects_of_the_program_can_be_used(services):
    broken = STACK.replace('["a"] = 1', '["a"] = 2')
    scores = await scored(services, OBJECTS, STACK, broken, STACK.replace("IndexError", "KeyError"))
    assert scores.values.tolist() == [1, 0, 1], [p.note for p in scores.provenance]


async def test_a_function_with_the_name_of_a_known_one_is_the_programs(services):
    wrong = "def gcd(a, b):\n    return 1"
    right = "def gcd(a, b):\n    while b: a, b = b, a % b\n    return a"
    tests = "for pair in [(12, 8)]:\n    assert gcd(*pair) == 4"
    assert (await scored(services, tests, wrong, right)).values.tolist() == [0, 1]
    humaneval = {"test": "def check(c):\n    assert c([1, 2, 3]) == 6", "entry_point": "sum"}
    program = "def sum(x):\n    return {}"
    assert (await scored(services, humaneval, program.format("x[-1] * 2"), program.format(7))).values.tolist() == [1, 0]


async def test_what_a_program_prints_is_there_for_its_tests(services):
    tests = (
        "import contextlib, io\nsaid = io.StringIO()\nwith contextlib.redirect_stdout(said):\n    hello()\n"
        "assert said.getvalue() == 'hello\\n'"
    )
    programs = ["def hello():\n    print('hello')", "def hello():\n    print('bye')"]
    assert (await scored(services, tests, *programs)).values.tolist() == [1, 0]


async def test_a_check_of_the_programs_own_decides_nothing(services):
    reference = {"test": "def verify(c):\n    assert c(1, 2) == 3", "entry_point": "add"}
    scores = await scored(services, reference, "def check(c): return c(1, 2)\ndef add(a, b): return 0")
    assert scores.state.tolist() == [FAILED]


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("def check(c):\n    assert c(1, 2) == 3", "never call"),
        ("x = 1\nif x:\n    assert True", "never call"),
        ("for f in [lambda x: x]:\n    assert add(f, 2) == 3", "type function"),
        ("def test_it(tmp_path):\n    assert add(1, 2) == 3", "fixture 'tmp_path'"),
    ],
)
async def test_tests_that_cannot_be_decided_fail_with_the_reason(tests, why, services):
    scores = await scored(services, tests, RIGHT)
    assert scores.state.tolist() == [FAILED]
    assert why in scores.provenance[0].note


async def test_what_tests_expect_is_not_where_the_program_can_read_it(services):
    reference = "wanted = [4, 9]\nbase = 2\nassert square(base) == 4\nassert square(3) == wanted[1]"
    thief = "import sys\ndef square(x):\n    g = sys._getframe(1).f_globals\n    return g['wanted'][x - 2]"
    honest = "def square(x):\n    return x * x"
    assert (await scored(services, reference, thief, honest, partial=True)).values.tolist() == [0, 1]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=20,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*remote.UNPACK, "ref", "dict", "array", ""]), inner)
    ),
    max_leaves=20,
)


def refuse(value: object) -> object:
    raise LookupError(value)


@given(PLAIN)
async def test_any_plain_value_comes_back_equal_and_of_its_kind(value):
    back = remote.unpacked(json.loads(json.dumps(remote.packed(value, refuse))), refuse)
    assert back == value
    assert type(back) is type(value)


@given(JSON)
async def test_any_message_is_a_plain_value_or_an_error(message):
    try:
        value = remote.unpacked(message, refuse)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return
    remote.packed(value, refuse)  # nothing but plain values
