"""A reward that is a Python object, as a name that a recipe can hold.

The reward of a notebook cell exists in that process only. Its source, with the imports, constants and functions that
it uses, is written to a file, and the recipe names that file: workers on any node can load it.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from cluster.errors import ConfigError

INTERACTIVE = ("__main__", "__mp_main__")
"""Modules that no other process can import."""


def name_of(reward: Callable[..., Any], directory: Path, prefix: str) -> str:
    """Return what `rewards[i].use` says for a function or a subclass of Reward.

    That is `package.module:name` for a reward of a package and `file.py:name` for one of a file. The source of any
    other is written to `directory`, into a file whose name begins with `prefix` and changes with the source. Raises
    ConfigError for a reward that cannot travel.
    """
    if (origin := _origin(reward)) is not None:
        module = sys.modules[origin[0]]
        if module.__package__:
            return ":".join(origin)
        if module.__file__:
            return f"{Path(module.__file__).absolute()}:{origin[1]}"
    text = source_of(reward)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = directory / f"{prefix}_{reward.__name__}_{digest}.py"
    directory.mkdir(parents=True, exist_ok=True)
    if not path.is_file():  # workers of a run may be reading it
        path.write_text(text, "utf-8")
    return f"{path.absolute()}:{reward.__name__}"


def source_of(reward: Any) -> str:
    """Return a module's text that defines a function or class as the running process does.

    Raises ConfigError, which names what cannot be written to a file.
    """
    _check_kind(reward)
    imports: list[str] = []
    parts: list[str] = []
    _add(reward, reward.__name__, imports, parts, set())
    return "\n".join(["from __future__ import annotations", "", *sorted(imports), "", *parts])


def _check_kind(reward: Any) -> None:
    """Raise ConfigError unless `reward` is a function or class that stands by itself."""
    if not isinstance(reward, FunctionType | type):
        raise ConfigError(
            f"reward {reward!r:.80} is neither a function nor a class. Give a function that is defined with def, or "
            "the name of a reward."
        )
    if reward.__name__ == "<lambda>":
        raise ConfigError("a lambda cannot be a reward: its source has no name. Define the reward with def.")
    free = reward.__code__.co_freevars if isinstance(reward, FunctionType) else ()
    if free or (isinstance(reward, type) and "<locals>" in reward.__qualname__):
        used = f"uses '{free[0]}' of" if free else "belongs to"
        raise ConfigError(
            f"reward '{reward.__name__}' {used} the function that it is defined in, which no worker has. Define the "
            "reward at the top level, and give it values as rewards[i].options."
        )


def _add(item: Any, name: str, imports: list[str], parts: list[str], seen: set[str]) -> None:
    """Append the source of a function or class, after that of all it uses."""
    seen.add(name)
    _check_kind(item)
    if item.__name__ != name:
        raise ConfigError(f"'{name}' is another name of '{item.__name__}'. Use the name that it is defined by.")
    try:
        text = textwrap.dedent(_read_source(item))
        ast.parse(text)
    except (OSError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"the source of '{name}' cannot be read: {error}. Write it to a file, and name it as 'file.py:{name}'."
        ) from error
    known = vars(sys.modules[item.__module__]) if isinstance(item, type) else item.__globals__
    for used in sorted(_globals(text)):
        if used in seen or used not in known or used == name:
            continue
        value = known[used]
        if hasattr(builtins, used) and getattr(value, "__module__", None) not in INTERACTIVE:
            continue  # IPython replaces some builtins in its namespace
        if isinstance(value, ModuleType):
            imports.append(f"import {value.__name__}" + (f" as {used}" if used != value.__name__ else ""))
        elif (origin := _origin(value)) is not None:
            imports.append(f"from {origin[0]} import {origin[1]}" + (f" as {used}" if used != origin[1] else ""))
        elif isinstance(value, FunctionType | type):
            _add(value, used, imports, parts, seen)
            continue
        else:
            parts.append(f"{used} = {_literal(value, used, name)}\n")
        seen.add(used)
    parts.append(f"\n{text}")


def _read_source(item: Any) -> str:
    """Return the source of a function or class. Raises OSError or TypeError."""
    if not isinstance(item, type):
        return inspect.getsource(item)
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):  # Python 3.11 does not find the class of a notebook's cell, but does find its methods
        codes = [value.__code__ for value in vars(item).values() if isinstance(value, FunctionType)]
        for code in codes:
            lines = linecache.getlines(code.co_filename)
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == item.__name__:
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    if first <= code.co_firstlineno <= (node.end_lineno or first):
                        return "".join(lines[first - 1 : node.end_lineno])
        raise


def _origin(value: Any) -> tuple[str, str] | None:
    """Return module and name that a worker can import a value by, None for a value of the running process alone."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in INTERACTIVE:
        return None
    return (module, name) if getattr(sys.modules.get(module), name, None) is value else None


def _literal(value: Any, name: str, user: str) -> str:
    """Return a plain value as Python source. Raises ConfigError for any other value."""
    text = repr(value)
    try:
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError):
        pass
    raise ConfigError(
        f"reward '{user}' uses the global '{name}', a {type(value).__name__}, which cannot be written to a file. Make "
        f"it inside the function, or give the function a parameter '{name}' and set rewards[i].options.{name}."
    )


def _globals(text: str) -> set[str]:
    """Return the names that a piece of source takes from its module."""
    return set(_referenced(symtable.symtable(text, "reward", "exec")))


def _referenced(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _referenced(child)
