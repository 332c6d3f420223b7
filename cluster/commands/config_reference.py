"""Write docs/recipes.md from the config models and the plug-ins: `python -m cluster.commands.config_reference`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.config.foreign_keys import FOREIGN_KEYS
from cluster.config.offline import DataSection, OfflineConfig
from cluster.config.policies import PolicySection
from cluster.config.run_config import RunConfig
from cluster.observability.trackers import TRACKERS
from cluster.plugins import lookup
from learner.advantages.registry import ADVANTAGES
from learner.batch.experience_replay import REPLAYS
from rewards.aggregation.selectors import SELECTORS
from rewards.aggregation.shaping import SHAPERS
from rewards.monitors import MONITORS
from rewards.registry import REWARDS

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
HEAD = """# Recipes

A recipe is one TOML file; `deploy/recipes/` has some to start from. `python -m cluster.run RECIPE` runs it, any key can
be overridden behind it as `section.key=value` in TOML's syntax (bare words are strings, `rewards.0.use=…` reaches into
a list), and `--dry-run` checks it and says what its numbers mean. A key that is not listed here is refused. The run
writes what it ran with, defaults and overrides included, to `config.toml` in its directory. A second start there goes
on with the run if what makes it is the same: seed, model and adapter (`learner.lora`), tasks, environment, group and
batch size, rewards with their options, selectors, scorers' models, and the kinds of advantage and loss. How long, how
fast, weights of rewards, evaluation, checkpoints and time-outs may change.

This page is made of the sources by `python -m cluster.commands.config_reference`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections(RunConfig, ""), *_offline(), *_plugins(), *_foreign()]) + "\n"


def _offline() -> Iterator[str]:
    """The keys that recipes of `kanabo sft` and `kanabo dpo` alone have."""
    yield f"## `[data]`\n\n{_doc(DataSection)}\n"
    yield from (*_table([_row(n, f, DataSection) for n, f in DataSection.model_fields.items()]), "")
    name = "evaluate_every_steps"
    yield "Such a recipe also has `seed`, `[run]`, `[model]`, `[learner]`, `[checkpoint]`, `[tracking]`, and\n"
    yield from (*_table([_row(name, OfflineConfig.model_fields[name], OfflineConfig)]), "")


def _sections(section: type[BaseModel], path: str) -> Iterator[str]:
    """A table of the section's own keys, then those of the sections below it."""
    below = {n: found for n, f in section.model_fields.items() if (found := _section_of(f.annotation))}
    if section is PolicySection:
        below = {}  # its sections are described where the recipe has them
    if rows := [_row(n, f, section) for n, f in section.model_fields.items() if n not in below]:
        yield f"## {f'`[{path}]`' if path else 'Top level'}\n"
        if path and (said := _doc(section)):
            yield f"{said}\n"
        yield from (*_table(rows), "")
    for name, inner in below.items():
        listed = get_origin(section.model_fields[name].annotation) in (tuple, list)
        inside = f"{path.strip('[]')}.{name}".lstrip(".")
        yield from _sections(inner, f"[{inside}]" if listed else inside)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a key that is a section, or a list or a dict of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_of(a))), None)


def _plugins() -> Iterator[str]:
    from actors.environments import ENVIRONMENTS
    from actors.tasks import TASKS
    from learner.controllers import CONTROLLERS
    from learner.losses.policy_losses import LOSSES
    from learner.losses.sequence_losses import TERMS

    kinds: dict[str, Mapping[str, type[BaseModel]]] = {
        "tasks": TASKS,
        "rollout.environment": {name: lookup(ENVIRONMENTS, name, "rollout.environment") for name in ENVIRONMENTS},
        "rewards": {name: lookup(REWARDS, name, "rewards") for name in REWARDS},
        "rewards.shape": SHAPERS,
        "selectors": SELECTORS,
        "monitors": MONITORS,
        "tracking.trackers": {name: TRACKERS[name] for name in ("mlflow", "trackio")},
        "controllers": CONTROLLERS,
        "learner.advantage": ADVANTAGES,
        "learner.loss": LOSSES,
        "learner.sequence_losses": TERMS,
        "learner.experience_replay": REPLAYS,
    }
    for where, known in kinds.items():
        yield f"## What `{where}` can use\n"
        yield "Its fields go into `options`; anything else is named `package.module:Class`.\n"
        for cls in dict.fromkeys(known.values()):
            names = " or ".join(f"`{name}`" for name, other in known.items() if other is cls)
            yield f"### {names}\n"
            if said := _doc(cls):
                yield f"{said}\n"
            if cls.model_fields:
                yield from (*_table([_row(n, f, cls) for n, f in cls.model_fields.items()]), "")


def _foreign() -> Iterator[str]:
    yield "## Names in other tools\n"
    yield "| verl, OpenRLHF, TRL | Kanabo |\n|---|---|"
    yield from (f"| `{theirs}` | `{ours}` |" for theirs, ours in FOREIGN_KEYS.items())


def _doc(cls: type[BaseModel]) -> str:
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _row(name: str, field: FieldInfo, owner: type[BaseModel]) -> tuple[str, ...]:
    meaning = " ".join(_meaning(name, field, owner).split()).replace("|", "\\|")
    return f"`{name}`", _type(field), _default(field), meaning


def _meaning(name: str, field: FieldInfo, owner: type[BaseModel]) -> str:
    """The field's docstring; where a class only changes a default, that of the class it inherits the field from."""
    bases = [c for c in owner.__mro__ if isinstance(c, type) and issubclass(c, BaseModel) and name in c.model_fields]
    return field.description or next((d for c in bases if (d := c.model_fields[name].description)), "")


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "needed"
    if default is None:
        return "not set"
    if isinstance(default, BaseModel):
        return "not set"
    written = {True: "true", False: "false"}[default] if isinstance(default, bool) else str(default)
    if isinstance(default, str):
        written = f'"{default}"'
    elif isinstance(default, tuple):
        written = str(list(default))
    return f"`{written}`"


def _type(field: FieldInfo) -> str:
    """In TOML's words, with the bounds."""
    return (_kind(field.annotation) + _bounds(field.metadata)).replace("|", "\\|")


def _bounds(metadata: Sequence[Any]) -> str:
    bounds = [
        f"{sign} {value if isinstance(value, int) else format(value, 'g')}"
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        for entry in metadata
        if (value := getattr(entry, attribute, None)) is not None
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return " | ".join(f'"{a}"' if isinstance(a, str) else str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(a) for a in arguments if a is not type(None))
    if origin in (tuple, list):
        inner = _kind(arguments[0])
        return f"list of ({inner})" if " | " in inner else f"list of {inner}"
    if origin is dict or annotation is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if annotation is Any:
        return "anything"
    words = {str: "text", bool: "true | false", int: "integer", float: "number"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
