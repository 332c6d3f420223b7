"""A recipe from TOML and overrides, and back; what is wrong with one, in a line that says what to do."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from cluster.config import shipped
from cluster.config.foreign_keys import renamed, translated, with_new_names
from cluster.config.run_config import RunConfig
from cluster.errors import ConfigError, nearest

Recipe = TypeVar("Recipe", bound=BaseModel)

EXPECTED = {
    "tuple_type": "a list is expected; sections of a list are headed [[LOC]]",
    "model_type": "a section is expected, its keys below [LOC]",
    "dict_type": "a section is expected, its keys below [LOC]",
}
"""Where pydantic would speak of Python."""


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply `section.key=value` overrides (values in TOML syntax, bare words are strings).

    `recipe` is a file, or the name of a recipe that comes with Kanabo. Raises ConfigError that says what is wrong,
    where, and what to do.
    """
    found = overridden(tree(recipe), overrides)
    if isinstance(found.get("data"), dict) and "path" in found["data"]:
        raise ConfigError(
            f"{recipe}: a recipe with [data] has no rollouts. Start it with `kanabo sft` or `kanabo dpo`."
        )
    return parse(found, where=str(recipe))


def tree(recipe: str | Path) -> dict[str, Any]:
    """Return the plain values of a recipe: a file, or the name of one that comes with Kanabo. Raises ConfigError."""
    path = Path(recipe)
    file = shipped.find(path.name) if path.name == str(recipe) and not path.is_file() else None
    return _tree(path) if file is None else shipped.with_data_files(_tree(file))


def stored(run: Path) -> RunConfig:
    """Read the recipe that a run directory holds; keys of an earlier version have their new names.

    Raises ConfigError.
    """
    path = run / "config.toml"
    return parse(with_new_names(_tree(path)), where=str(path))


def _tree(path: Path) -> dict[str, Any]:
    """What a recipe's file says. Raises ConfigError."""
    try:
        text = path.read_text("utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError as error:
        here = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        known = here if path.suffix else [*here, *shipped.names()]
        hint = "`kanabo recipes` lists those that come with Kanabo." if path.name == str(path) else ""
        raise ConfigError(f"recipe '{path}' does not exist. {nearest(path.name, known)}{hint}".strip()) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"recipe '{path}' is not a text file. A recipe is TOML; see deploy/recipes/.") from error
    except OSError as error:
        raise ConfigError(f"recipe '{path}' cannot be read: {error.strerror}. Check its permissions.") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe '{path}' is not valid TOML: {error}. Strings need quotes, see toml.io.") from error
    if not tree:
        raise ConfigError(f"recipe '{path}' is empty. See deploy/recipes/ for ones to start from.")
    return tree


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree, changed by each `section.key=value`. Raises ConfigError."""
    for override in overrides:
        _override(tree, override)
    return tree


def merged(tree: dict[str, Any], changes: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
    """Return the tree, changed by values under nested or dotted keys. Raises ConfigError."""
    for key, value in changes.items():
        place = f"{at}{key}"
        if isinstance(value, Mapping) and value:
            merged(tree, value, at=f"{place}.")
        else:
            _put(tree, place, value, f"{place}={value}")
    return tree


def parse(tree: Mapping[str, Any], *, where: str = "recipe") -> RunConfig:
    """A checked RunConfig from plain values. Raises ConfigError."""
    return parse_as(RunConfig, tree, where=where)


def parse_as(schema: type[Recipe], tree: Mapping[str, Any], *, where: str) -> Recipe:
    """A checked recipe of the kind `schema` from plain values. Raises ConfigError."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        findings = (_finding(one, schema) for one in error.errors())
        raise ConfigError("\n".join(f"{where}: {line}" for line in findings)) from error


def dump(config: RunConfig) -> str:
    """The resolved recipe as TOML; a password in `buffer.url` is left out."""
    return tomli_w.dumps(tree_of(config))


def tree_of(config: RunConfig) -> dict[str, Any]:
    """The resolved recipe as plain values, for files and strangers: a password in `buffer.url` is left out."""
    tree = config.model_dump(mode="json", exclude_none=True)
    if config.buffer.url:
        tree["buffer"]["url"] = without_password(config.buffer.url)
    return tree


def without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if "@" in rest else url


def patched(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The recipe with some values changed: dotted key → value. Raises ConfigError."""
    if not settings:
        return config
    tree = config.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        _put(tree, key, value, f"{key} = {value}")
    return parse(tree, where="a controller's patch")


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{override}' is not 'section.key=value', for example learner.steps=40.")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    _put(tree, key.strip(), value, override)


def _put(tree: dict[str, Any], key: str, value: Any, override: str) -> None:
    *parents, leaf = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise ConfigError(_nowhere(override, node, part))
    if isinstance(node, list) and leaf.isdigit() and int(leaf) < len(node):
        node[int(leaf)] = value
    elif isinstance(node, dict):
        node[leaf] = value
    else:
        raise ConfigError(_nowhere(override, node, leaf))


def _nowhere(override: str, node: Any, part: str) -> str:
    if isinstance(node, list):
        return f"override '{override}': there is no '{part}' in a list of {len(node)}. Places count from 0."
    return f"override '{override}': {node!r:.80} has no keys of its own. Write section.key=value."


def _finding(error: Any, schema: type[BaseModel]) -> str:
    """One of pydantic's findings as a line that says what to do."""
    loc = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = sorted(_section(schema, error["loc"][:-1]).model_fields)
        key = str(error["loc"][-1])
        if new := renamed(loc, error["input"]):
            return new
        hint = translated(key) or nearest(key, known) or translated(key, error["input"])
        if not hint and "options" in known:
            hint = f"Fields of a plug-in go into '{loc.removesuffix(key)}options'. "
        return f"unknown key '{loc}'. {hint}Known here: {', '.join(known)}."
    if error["type"] == "missing":
        return f"'{loc}' is missing, and it has no default."
    if error["type"] == "value_error":
        said = str(error["ctx"]["error"])
        return said if loc in said else f"{loc}: {said}"
    expected = EXPECTED[error["type"]].replace("LOC", loc) if error["type"] in EXPECTED else error["msg"]
    return f"{loc} = {error['input']!r:.80}: {expected}."


def _section(schema: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The section at this place of the tree; keys of dicts and places in tuples belong to the path."""
    annotation: Any = schema
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            annotation = _inner(annotation)
    while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        annotation = _inner(annotation)
    return annotation


def _inner(annotation: Any) -> Any:
    """`X` of `X | None`, `tuple[X, ...]`, `list[X]` and `dict[str, X]`."""
    arguments = [a for a in get_args(annotation) if a not in (type(None), ...)]
    return arguments[-1] if get_origin(annotation) is dict else arguments[0]
