"""Test cases of a programming task, from the columns that verl, prime-rl and their data sets use."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.sandbox.programs import encoded

FORMS = (
    'a JSON object with "inputs" and "outputs" (verl; "fn_name" for calls), with "test_cases" (prime-rl), with '
    '"dataset_type" and "ground_truth", with "assert_case", "functional" or "test" and "entry_point", a list of '
    'objects with "input" and "output", a list of assert statements, or Python code of tests'
)
RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""Numbers with a point in a program's output may differ so much."""


@dataclass(frozen=True)
class Case:
    """One test. `stdin`: text in, text out. `call`: arguments, value. `equal`: an expression's value. `tests`: code."""

    kind: Literal["stdin", "call", "equal", "tests"]
    given: Any
    expected: Any = None
    name: str = ""
    """The function that is called or tested; with `equal`, statements that come first."""

    def passes(self, value: Any) -> bool:
        """Whether this is what is expected. `value` came out of the sandbox."""
        try:
            return self._equals(value)
        except (KeyError, TypeError, ValueError, RecursionError):  # it is whatever the program wrote
            return False

    def _equals(self, value: Any) -> bool:
        if self.kind == "stdin":
            return same_output(str(value), self.expected)
        if self.kind == "equal":
            return same(value, encoded(self.expected))
        wanted, found = self.expected, _without_tuples(value)
        return same(found, wanted) or (isinstance(wanted, list) and len(wanted) == 1 and same(found, wanted[0]))


def cases_of(reference: str) -> list[Case]:
    """The cases that a task's reference holds. Raises ValueError for one that is none of the known forms."""
    try:
        tree = json.loads(reference)
    except (ValueError, RecursionError):
        tree = reference
    cases = _cases(tree)
    if not cases:
        raise ValueError(f"the reference {reference!r:.80} holds no test case. Known: {FORMS}")
    return cases


def _cases(tree: Any) -> list[Case]:
    if isinstance(tree, str):
        return _of_code(tree)
    if isinstance(tree, list):
        if all(isinstance(entry, str) for entry in tree):
            return [case for entry in tree for case in _of_code(entry)]
        return [_of_entry(entry) for entry in tree]
    if not isinstance(tree, dict):
        return []
    for key in ("ground_truth", "test_cases", "assert_case", "functional", "pytest"):
        if tree.get(key):
            inner = tree[key]
            return cases_of(inner) if key == "ground_truth" and isinstance(inner, str) else _cases(inner)
    if tree.get("test"):
        return [Case("tests", str(tree["test"]), name=str(tree.get("entry_point") or ""))]
    inputs, outputs = tree.get("inputs"), tree.get("outputs")
    if isinstance(inputs, list) and isinstance(outputs, list):
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs: each case needs both")
        return [_case(given, wanted, tree.get("fn_name")) for given, wanted in zip(inputs, outputs, strict=True)]
    return [_of_entry(tree)] if "input" in tree else []


def _of_entry(entry: Any) -> Case:
    if not isinstance(entry, dict) or "input" not in entry or "output" not in entry:
        raise ValueError(f"{entry!r:.80} is no test case with 'input' and 'output'")
    metadata = entry.get("metadata")
    inner = metadata.get("func_name") if isinstance(metadata, dict) else None
    return _case(entry["input"], entry["output"], entry.get("fn_name") or inner)


def _case(given: Any, wanted: Any, function: str | None) -> Case:
    if not function:
        return Case("stdin", _text(given), _text(wanted))
    if isinstance(given, str):
        given = [json.loads(line) for line in given.split("\n") if line.strip()]
    if isinstance(wanted, str):
        with contextlib.suppress(ValueError):  # the text itself is what the function returns
            wanted = json.loads(wanted)
    return Case("call", given if isinstance(given, list) else [given], wanted, function)


def _of_code(code: str) -> list[Case]:
    """A case for each assert statement at the top; for other tests one for all of them.

    `assert f(2) == 4` is taken apart: the program gives f(2), and whether that is 4 is decided outside of its reach.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the reference {code!r:.80} is neither JSON nor Python: {error}. Known: {FORMS}") from error
    before = [node for node in body if not isinstance(node, ast.Assert)]
    if not all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign) for node in before) or len(before) == len(
        body
    ):
        return [Case("tests", code)] if body else []
    cases: list[Case] = []
    setup: list[ast.stmt] = []
    for node in body:
        if not isinstance(node, ast.Assert):
            setup.append(node)
        elif (taken := _taken_apart(node.test)) is not None:
            cases.append(Case("equal", taken[0], taken[1], _unparsed(_needed(setup, node.test.left))))  # type: ignore
        else:
            cases.append(Case("tests", _unparsed([*setup, node])))
    return cases


def _needed(setup: Sequence[ast.stmt], expression: ast.expr) -> list[ast.stmt]:
    """Imports, and the assignments that an expression rests on: what else is set may be what is expected."""
    names, kept = _names(expression), []
    for node in reversed(setup):
        if not isinstance(node, ast.Assign):
            kept.append(node)
        elif names & {name for target in node.targets for name in _names(target)}:
            names |= _names(node.value)
            kept.append(node)
    return kept[::-1]


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _unparsed(nodes: Sequence[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, nodes))


def _taken_apart(test: ast.expr) -> tuple[str, Any] | None:
    """An expression and the plain value that it must equal; None for another kind of test."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        try:
            value = ast.literal_eval(test.comparators[0])
            encoded(value)
        except (ValueError, TypeError, RecursionError):
            return None
        return ast.unparse(test.left), value
    return None


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _without_tuples(value: Any) -> Any:
    """As JSON references have values: lists for tuples, objects with text keys for dicts."""
    if isinstance(value, list):
        return [_without_tuples(v) for v in value]
    if isinstance(value, dict) and value.keys() == {"tuple"}:
        return _without_tuples(value["tuple"])
    if isinstance(value, dict) and value.keys() == {"dict"}:
        return {k if isinstance(k, str) else json.dumps(k): _without_tuples(v) for k, v in value["dict"]}
    return value


def same(first: Any, second: Any) -> bool:
    """Equality of JSON, whose numbers with a point may differ in their last digits."""
    if isinstance(first, float) or isinstance(second, float):
        numbers = all(isinstance(v, int | float) for v in (first, second))
        return numbers and math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(v, second[k]) for k, v in first.items())
    return type(first) is type(second) and first == second


def same_output(output: str, expected: str) -> bool:
    """Equal up to spaces at the ends of lines, empty lines at the end, and the last digits of numbers with a point."""
    rows, wanted = _rows(output), _rows(expected)
    if rows == wanted:
        return True
    return len(rows) == len(wanted) and all(map(_same_row, rows, wanted))


def _rows(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_row(row: str, wanted: str) -> bool:
    found, expected = row.split(), wanted.split()
    return len(found) == len(expected) and all(map(_same_word, found, expected))


def _same_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if "." not in wanted and "e" not in wanted.lower():
        return False
    try:
        return math.isclose(float(word), float(wanted), rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except ValueError:
        return False


def program_of(text: str) -> str:
    """The last fenced Python block, else the last fenced one, else the whole text."""
    blocks: list[tuple[str, str]] = []
    opened: tuple[str, list[str]] | None = None
    for line in text.splitlines():
        mark = line.strip()
        if opened is not None and mark.startswith("```") and not mark.strip("`"):
            blocks.append((opened[0], "\n".join(opened[1])))
            opened = None
        elif opened is None and mark.startswith("```"):
            opened = mark.strip("`").strip().lower(), []
        elif opened is not None:
            opened[1].append(line)
    if opened is not None:  # a text that ran out of tokens
        blocks.append((opened[0], "\n".join(opened[1])))
    python: Sequence[str] = [code for language, code in blocks if language in ("python", "python3", "py")]
    return python[-1] if python else blocks[-1][1] if blocks else text
