"""What `eval` and sympy's parser may evaluate in a checker: expressions, not programs.

The sandbox keeps a text from doing harm outside of its call. Within its call a text that runs could still write the
score itself, so in the checkers' own libraries it does not run: what is no plain expression is refused, which a scorer
takes for a wrong answer.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Mapping
from functools import wraps
from typing import Any

from sympy import Basic, Function
from sympy.core.function import UndefinedFunction
from sympy.matrices.matrixbase import MatrixBase
from sympy.parsing import sympy_parser

LITERALS = (
    ast.Expression, ast.Constant, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.List, ast.Tuple, ast.Set,
    ast.Dict, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
FUNCTIONS = frozenset({"abs", "cbrt", "float", "gcd", "int", "lcm", "pow", "real_root", "root", "round", "sqrt"})
"""Functions, beside sympy's classes, that an expression may call."""
CONSTANT_TEXT = re.compile(r"[\w.+-]*", re.ASCII)
"""Texts within an expression: names of symbols and digits of numbers."""
MAX_CHARS = 20_000


def guard() -> None:
    """From now on refuse what is no expression: in sympy's parser, and in the `eval` of reasoning_gym's modules."""
    if not hasattr(sympy_parser.stringify_expr, "guarded"):
        sympy_parser.stringify_expr = _guarded_parser(sympy_parser.stringify_expr)
        builtins.eval = _guarded_eval(builtins.eval)


def _guarded_parser(stringify: Any) -> Any:
    @wraps(stringify)
    def guarded(s: str, local_dict: dict, global_dict: dict, transformations: Any) -> str:
        code = stringify(s, local_dict, global_dict, transformations)
        check_expression(code, {**global_dict, **local_dict})
        return code

    guarded.guarded = True  # type: ignore[attr-defined]
    return guarded


def _guarded_eval(evaluate: Any) -> Any:
    @wraps(evaluate)
    def guarded(source: Any, *spaces: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__", "").partition(".")[0] == "reasoning_gym":
            check_literal(source)
        if not spaces:
            spaces = caller.f_globals, caller.f_locals
        return evaluate(source, *spaces)

    return guarded


def check_literal(source: Any) -> None:
    """Raise ValueError unless it is numbers, texts and containers of them, with operators."""
    for node in ast.walk(_parsed(source)):
        if not isinstance(node, LITERALS) and not (isinstance(node, ast.Name) and node.id in ("inf", "nan")):
            raise ValueError(f"not a plain expression: {type(node).__name__}")


def check_expression(source: Any, names: Mapping[str, Any]) -> None:
    """Raise ValueError unless it is made of numbers, sympy's objects and calls of sympy's classes."""
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str | bytes) and not CONSTANT_TEXT.fullmatch(str(node.value)):
                raise ValueError("a text within an expression")
        elif isinstance(node, ast.Call):
            if not _callable(node.func, names):
                raise ValueError(f"a call of {ast.unparse(node.func)[:80]!r} within an expression")
        elif isinstance(node, ast.Name):
            if not _known(node.id, names):
                raise ValueError(f"the name {node.id[:80]!r} within an expression")
        elif not isinstance(node, (*LITERALS, ast.keyword)):
            raise ValueError(f"not a plain expression: {type(node).__name__}")


def _parsed(source: Any) -> ast.AST:
    if not isinstance(source, str) or len(source) > MAX_CHARS:
        raise ValueError("not a text of an expression, or too long a one")
    return ast.parse(source.strip(), mode="eval")


def _callable(function: ast.expr, names: Mapping[str, Any]) -> bool:
    if isinstance(function, ast.Call):  # Function('f')(x)
        return isinstance(function.func, ast.Name) and names.get(function.func.id) is Function
    if not isinstance(function, ast.Name):
        return False
    found = names.get(function.id)
    return function.id in FUNCTIONS or _is_class(found) or isinstance(found, UndefinedFunction)


def _known(name: str, names: Mapping[str, Any]) -> bool:
    found = names.get(name)
    return name in FUNCTIONS or isinstance(found, Basic | MatrixBase) or found is None or _is_class(found)


def _is_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Basic | MatrixBase)
