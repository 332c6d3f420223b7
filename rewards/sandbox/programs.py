"""Running a program that a model wrote, in the sandbox. What it should give never enters the program's process."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rewards.sandbox import remote

PREAMBLE = """
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, os, random, re
import statistics, string, sys, typing
from typing import *
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
from math import *
sys.setrecursionlimit(100_000)
"""
"""What programs for such tests expect to be imported."""
SOCKET = 3


def warm() -> None:
    exec(PREAMBLE, {})


def run(program: str) -> None:
    """As a script whose standard input and output are the call's socket; ends the process with its exit status."""
    os.dup2(SOCKET, 0)
    os.dup2(SOCKET, 1)
    os.close(SOCKET)
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115 - for the program's whole life
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.argv = ["program.py"]
    code = 0
    try:
        exec(compile(program, "program.py", "exec"), _space("__main__"))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
    try:
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def call(program: str, name: str, args: list[Any]) -> Any:
    """What its function gives for these arguments; a method of its class Solution where there is one."""
    space = _space("program")
    exec(compile(program, "program.py", "exec"), space)
    solution = space.get("Solution")
    function = getattr(solution(), name) if isinstance(solution, type) and hasattr(solution, name) else space[name]
    return encoded(function(*args))


def evaluate(program: str, setup: str, expression: str) -> Any:
    """What an expression gives after the program and some statements of the tests."""
    space = _space("program")
    exec(compile(program, "program.py", "exec"), space)
    exec(compile(setup, "tests.py", "exec"), space)
    return encoded(eval(expression, space))


def host(program: str) -> None:
    """Run it, then do what the tests' process asks for until that ends."""
    space = _space("program")
    before = dict(space)
    exec(compile(program, "program.py", "exec"), space)
    remote.send({"names": [name for name, value in space.items() if before.get(name, space) is not value]})
    remote.Host(space).serve()


def examine(code: str, entry: str) -> dict[str, Any]:
    """Run tests, which are trusted, against the program in the other process: `remote.examine`."""
    return remote.examine(code, entry, _space("tests"))


def _space(name: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": name}
    exec(PREAMBLE, space)
    return space


def encoded(value: Any) -> Any:
    """Plain values as JSON keeps them, each kind told apart; raises TypeError for objects, whose `==` could lie."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encoded(v) for v in value]
    if kind is tuple:
        return {"tuple": [encoded(v) for v in value]}
    if kind in (set, frozenset):
        return {"set": sorted((encoded(v) for v in value), key=_order)}
    if isinstance(value, dict) and kind.__module__ in ("builtins", "collections"):
        return {"dict": sorted(([encoded(k), encoded(v)] for k, v in value.items()), key=_order)}
    if kind.__module__ == "collections" and kind.__name__ == "deque":
        return [encoded(v) for v in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"{kind.__name__} is no plain value")


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
