"""Tests and the program that they examine, each in a process of its own.

    process of the tests ── one socket, JSON both ways ── process of the program
      asserts, sees what comes back                         calls what the tests name, sees their arguments

The program's process knows neither the tests' code nor what they expect, so nothing that a program does to its own
interpreter (exits, patched builtins, traces, frames) can make a test pass. Plain values cross as copies. Other objects
of the program stay there; the tests hold `Remote` stand-ins, whose operators never hand a plain value of the tests to
the program: such a value may be what is expected.
"""

from __future__ import annotations

import asyncio
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import inspect
import io
import json
import operator
import os
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

PEER_FD = 4
"""The socket between the two processes."""
MAX_BYTES = 16 << 20
SMALL = 1 << 53
"""Integers beyond cross as hexadecimal digits: decimal ones of great length are refused by Python."""
OWN_MODULES = ("solution", "program", "main", "code_under_test")
"""Names under which tests import the program."""
CONTAINERS: tuple[tuple[Any, str], ...] = (
    (list, "list"),
    (tuple, "tuple"),
    (set, "set"),
    (frozenset, "frozenset"),
    (collections.deque, "deque"),
)
MUTABLE = (list, dict, set, bytearray, collections.deque)
UNRAISED = (StopIteration, StopAsyncIteration)
"""Raised within a test's `map` they would end it early and skip what comes after."""
OPERATORS = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "matmul",
        "and",
        "or",
        "xor",
        "lt",
        "le",
        "gt",
        "ge",
    )
}


class Undecided(Exception):
    """The tests ask for something that does not exist here."""


class Ended(Exception):
    """The other process has ended, or says what is no message."""


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────


def send(message: Any) -> None:
    data = json.dumps(message).encode()
    if len(data) > MAX_BYTES:
        raise ValueError("a value that is too long to cross")
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(PEER_FD, view) :]


def receive() -> Any:
    length = int.from_bytes(_exactly(8), "little")
    if length > MAX_BYTES:
        raise Ended("a message that is too long")
    try:
        return json.loads(_exactly(length))
    except (ValueError, RecursionError) as error:
        raise Ended("a message that is no JSON") from error


def _exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(PEER_FD, min(count, 1 << 20))
        if not part:
            raise Ended("it has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def packed(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as JSON keeps it, each kind told apart by its tag; `refer` makes the message of any other object."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < SMALL else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    for kind, tag in CONTAINERS:
        if isinstance(value, kind):
            items = [packed(item, refer) for item in kind.__iter__(value)]
            return items if tag == "list" else {tag: items}
    if isinstance(value, dict):
        return {"dict": [[packed(k, refer), packed(v, refer)] for k, v in dict.items(value)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, decimal.Decimal):
        return {"Decimal": str(value)}
    if isinstance(value, fractions.Fraction):
        return {"Fraction": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        kinds = (datetime.datetime, datetime.date, datetime.time)
        return {next(k.__name__ for k in kinds if isinstance(value, k)): value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and hasattr(value, "tolist"):
        kind = "array" if getattr(value, "shape", ()) else "scalar"
        return {kind: [str(value.dtype), packed(value.tolist(), refer)]}
    return refer(value)


def unpacked(message: Any, resolve: Callable[[Any], Any]) -> Any:
    """The value of a message. Raises ValueError or TypeError for what is none: a program may write what it likes."""
    if not isinstance(message, list | dict):
        return message
    if isinstance(message, list):
        return [unpacked(item, resolve) for item in message]
    if len(message) != 1:
        raise ValueError("no value")
    tag, inner = next(iter(message.items()))
    if tag == "dict":
        return {unpacked(k, resolve): unpacked(v, resolve) for k, v in inner}
    if tag == "ref":
        return resolve(inner)
    if tag in ("array", "scalar"):
        return _numpy(tag, inner[0], unpacked(inner[1], resolve))
    make = UNPACK.get(tag)
    if make is None:
        raise ValueError("no value")
    return make([unpacked(item, resolve) for item in inner] if isinstance(inner, list) else inner)


UNPACK: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "Decimal": decimal.Decimal,
    "Fraction": lambda parts: fractions.Fraction(*(int(part, 16) for part in parts)),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
}


def _numpy(tag: str, dtype: str, items: Any) -> Any:
    import numpy

    kind = numpy.dtype(dtype)
    if kind.kind not in "biufcUS":
        raise ValueError("an array of objects")
    made = numpy.array(items, dtype=kind)
    return made if tag == "array" else made[()]


# ── the program's side ──────────────────────────────────────────────────────────────────────────────────────


class Host:
    """Answers the tests' process about the program's objects, in the program's process."""

    def __init__(self, space: dict[str, Any]) -> None:
        self._objects: dict[int, Any] = {0: space}
        self._numbers: dict[int, int] = {}

    def serve(self) -> None:
        while True:
            request = receive()
            try:
                answer = self._answer(request)
                send(answer)
            except Ended:
                raise
            except BaseException as error:
                send(_raised(error))

    def _answer(self, request: Any) -> Any:
        what, where, *rest = request
        target = self._objects[where]
        before = [json.dumps(message) for message in rest[0]] if rest else []
        args = [unpacked(message, self._objects.__getitem__) for message in (rest[0] if rest else ())]
        options = {k: unpacked(v, self._objects.__getitem__) for k, v in (rest[1] if len(rest) > 1 else {}).items()}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = OPERATIONS[what](target, *args, **options)
        if what == "next" and value is END:
            return {"end": True}
        answer = {"value": self._packed(value), "printed": printed.getvalue()}
        if what == "call":
            after = [self._packed(arg) if isinstance(arg, MUTABLE) else None for arg in args]
            answer["args"] = [
                now if now is not None and json.dumps(now) != then else None
                for now, then in zip(after, before, strict=True)
            ]
        return answer

    def _packed(self, value: Any) -> Any:
        return packed(value, self._refer)

    def _refer(self, value: Any) -> Any:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = number = len(self._objects)
            self._objects[number] = value
        return {"ref": self._numbers[id(value)]}


END = object()
OPERATIONS: dict[str, Callable[..., Any]] = {
    "name": lambda space, name: space[name],
    "get": getattr,
    "set": setattr,
    "call": lambda function, *args, **options: function(*args, **options),
    "item": lambda target, key: target[key],
    "put": lambda target, key, value: target.__setitem__(key, value),
    "drop": lambda target, key: target.__delitem__(key),
    "iter": lambda target: _Iterator(iter(target)),
    "next": lambda iterator: iterator.next(),
    "len": len,
    "str": str,
    "repr": repr,
    "bool": bool,
    "eq": lambda first, second: first == second,
    "hash": hash,
    "isinstance": isinstance,
    "await": lambda target: asyncio.run(_finished(target)),
    "enter": lambda target: type(target).__enter__(target),
    "exit": lambda target: type(target).__exit__(target, None, None, None),
    **OPERATORS,
}


class _Iterator:
    """An iterator as an object of its own kind: a generator would cross as itself."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def next(self) -> Any:
        return next(self._iterator, END)


async def _finished(value: Any) -> Any:
    return await value


def _raised(error: BaseException) -> Any:
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        said = str(error)[:1000]
    except BaseException:
        said = ""
    return {"raised": names, "said": said}


# ── the tests' side ─────────────────────────────────────────────────────────────────────────────────────────


class Link:
    """What the tests' process knows of the program's."""

    def __init__(self) -> None:
        self.used = False
        """Whether the tests have asked the program for anything but its names."""
        self.uncrossed = ""
        """A value of the tests' that could not be handed over: they cannot be decided then, whatever they catch."""

    def ask(self, what: str, where: int, args: tuple[Any, ...] = (), options: dict[str, Any] | None = None) -> Any:
        self.used = self.used or what != "name"
        try:
            packed_args = [packed(arg, self._refer) for arg in args]
            packed_options = {name: packed(arg, self._refer) for name, arg in (options or {}).items()}
            send([what, where, packed_args, packed_options])
            answer = receive()
        except OSError as error:
            raise Ended("it has ended") from error
        if not isinstance(answer, dict):
            raise Ended("no answer")
        if "raised" in answer:
            raise _local(answer["raised"], answer.get("said"))
        if answer.get("end") is True and what == "next":
            raise StopIteration
        if "value" not in answer:
            raise Ended("no answer")
        if isinstance(answer.get("printed"), str):  # tests may look at what is printed
            sys.stdout.write(answer["printed"])
        for arg, after in zip(args, answer.get("args") or (), strict=False):
            if after is not None and isinstance(arg, MUTABLE):
                _become(arg, unpacked(after, self.resolve))
        return unpacked(answer["value"], self.resolve)

    def resolve(self, number: Any) -> Any:
        if not isinstance(number, int):
            raise ValueError("no object")
        return Remote(self, number)

    def _refer(self, value: Any) -> Any:
        if type(value) is Remote:
            return {"ref": object.__getattribute__(value, "_number")}
        self.uncrossed = f"the tests hand the program a value of type {type(value).__name__}, which cannot cross"
        raise Undecided(self.uncrossed)


def _local(names: Any, said: Any) -> Exception:
    """An exception of the tests' process for one of the program's: of the nearest builtin class, never an exit."""
    for name in names if isinstance(names, list) else ():
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UNRAISED):
            try:
                return kind(str(said))
            except TypeError:  # UnicodeDecodeError and its like want more
                continue
    return RuntimeError(f"the program raised: {said}")


def _become(value: Any, after: Any) -> None:
    """Give a mutable argument the contents that the program left it with."""
    if type(after) is not type(value) and not isinstance(value, dict):
        return
    if isinstance(value, list | bytearray):
        value[:] = after
    else:
        value.clear()
        (value.extend if isinstance(value, collections.deque) else value.update)(after)


class Remote:
    """An object of the program's."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _link(self).ask("call", _number(self), args, options)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "put", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "drop", key)

    def __iter__(self) -> Any:
        iterator = _ask(self, "iter")
        while True:
            try:
                item = _ask(iterator, "next")
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return _ask(_ask(self, "iter"), "next")

    def __contains__(self, value: Any) -> bool:
        return any(value == item for item in self)  # the program must not hear what is looked for

    def __len__(self) -> int:
        return _ask(self, "len")

    def __bool__(self) -> bool:
        return _ask(self, "bool") is True

    def __str__(self) -> str:
        return _ask(self, "str")

    def __repr__(self) -> str:
        return _ask(self, "repr")

    def __hash__(self) -> int:
        return _ask(self, "hash")

    def __eq__(self, other: object) -> Any:
        """With a plain value: unequal, and the program is not asked."""
        if type(other) is not Remote:
            return NotImplemented
        return _number(self) == _number(other) or _ask(self, "eq", other) is True

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Remote and _ask(value, "isinstance", self) is True

    def __await__(self) -> Any:
        return _ask(self, "await")
        yield

    def __enter__(self) -> Any:
        return _ask(self, "enter")

    def __exit__(self, *_: object) -> None:
        _ask(self, "exit")


def _operator(name: str) -> Callable[[Remote, Any], Any]:
    def apply(self: Remote, other: Any) -> Any:
        return _ask(self, name, other) if type(other) is Remote else NotImplemented

    return apply


for _name in OPERATORS:
    setattr(Remote, _name, _operator(_name))


def _link(remote: Remote) -> Link:
    return object.__getattribute__(remote, "_link")


def _number(remote: Remote) -> int:
    return object.__getattribute__(remote, "_number")


def _ask(remote: Any, what: str, *args: Any) -> Any:
    if type(remote) is not Remote:
        raise TypeError("no object of the program's")
    return _link(remote).ask(what, _number(remote), args)


class _OwnModule(types.ModuleType):
    """The program, where tests import it as a module."""

    def __init__(self, name: str, link: Link, names: set[str], known: set[str]) -> None:
        """`names` may be imported from it; `known` are those that `import *` gives."""
        super().__init__(name)
        self.__all__, self.__dict__["_names"] = sorted(known), names
        self.__dict__["_ask"] = lambda known: link.ask("name", 0, (known,))

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__["_names"]:
            raise AttributeError(f"the program defines no {name!r}")
        return self.__dict__["_ask"](name)


def examine(code: str, entry: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run tests against the program of the other process.

    `entry` is the function that they are about, where that is known; `given` are names that tests may use unimported.
    Returns whether the tests `passed`, or why they cannot be decided (`undecided`).
    """
    link = Link()
    hello = receive()
    if not isinstance(hello, dict) or not isinstance(hello.get("names"), list):
        return {"passed": False}  # the program raised
    names = {name for name in hello["names"] if isinstance(name, str) and not name.startswith("__")}
    tests = compile(code, "tests.py", "exec")
    known = _of_the_program(names, _mentioned(tests), entry, given)
    for name in OWN_MODULES:
        sys.modules[name] = _OwnModule(name, link, names, known)
    sys.modules["tests"] = sys.modules["__main__"] = module = types.ModuleType("tests")  # where unittest.main looks
    sys.argv = ["tests.py"]
    space = module.__dict__
    space.update(given, __name__="tests")
    for name in known:
        space[name] = link.ask("name", 0, (name,))
    passed = True
    try:
        exec(tests, space)
        if entry and isinstance(space.get("check"), types.FunctionType):  # of the tests, not of the program
            space["check"](eval(entry, space))
        _run_what_is_defined(space)
    except Undecided as error:
        link.uncrossed = str(error)
    except SystemExit as error:  # of unittest.main: the program's own exits do not come here
        passed = error.code in (None, 0, False)
    except BaseException:
        passed = False
    if link.uncrossed:
        return {"undecided": link.uncrossed}
    if passed and not link.used:
        return {"undecided": "the tests never call the program"}
    return {"passed": passed}


def _of_the_program(names: set[str], mentioned: set[str], entry: str, given: dict[str, Any]) -> set[str]:
    """Names of the program that tests see as such.

    The names of builtins and of what tests are given stay theirs: a program could replace what they compare with. An
    exception is the function that they are about.
    """
    reserved = {name for name in names if name in given or hasattr(builtins, name)}
    about = {entry} if entry else set()
    if not entry and not (names - reserved) & mentioned:  # they are about one whose name is also known elsewhere
        about = {name for name in reserved & mentioned if not isinstance(given.get(name), types.ModuleType)}
    return (names - reserved) | (about & names)


def _mentioned(code: types.CodeType) -> set[str]:
    """All names that code uses, in its functions too."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_mentioned, inner))


def _run_what_is_defined(space: dict[str, Any]) -> None:
    """Run test functions and classes, as pytest and unittest would; fixtures are not known here."""
    own = [v for v in space.values() if getattr(v, "__module__", "") == "tests"]
    cases = [v for v in own if isinstance(v, type) and issubclass(v, unittest.TestCase)]
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases))
    if not suite.run(unittest.TestResult()).wasSuccessful():
        raise AssertionError("a test case failed")
    for found in own:
        if isinstance(found, types.FunctionType) and found.__name__.startswith("test"):
            _run(found, found)
        elif isinstance(found, type) and found.__name__.startswith("Test") and found not in cases:
            for name in [name for name in vars(found) if name.startswith("test")]:
                _run(getattr(found(), name), vars(found)[name])


def _run(function: Callable[..., Any], marked: Any) -> None:
    """Call a test function, for each of its parameters."""
    sets: list[list[dict[str, Any]]] = []
    for mark in getattr(marked, "pytestmark", []):
        if mark.name == "parametrize":
            sets.append(_parameters(*mark.args[:2]))
    known = {key for rows in sets for row in rows for key in row}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and name not in known and parameter.kind < parameter.VAR_POSITIONAL:
            raise Undecided(f"{function.__name__} wants a fixture {name!r} of pytest, which does not exist here")
    for chosen in product(*sets):
        result = function(**{k: v for one in chosen for k, v in one.items()})
        if inspect.isawaitable(result):
            asyncio.run(_finished(result))


def _parameters(names: Any, rows: Any) -> list[dict[str, Any]]:
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    # pytest.param(…) holds its values in a tuple.
    both = [(row, row.values if type(row).__name__ == "ParameterSet" else row) for row in rows]
    return [dict(zip(keys, row if len(keys) > 1 or row is not raw else (row,), strict=True)) for raw, row in both]
