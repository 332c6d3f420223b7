"""Plug-ins: a class whose fields are its options, found by name in a plain dict or as `package.module:Class`."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.foreign_keys import new_option, translated
from cluster.errors import ConfigError, KanaboError, located, nearest


class Plugin(BaseModel):
    """Base of every plug-in: frozen, and an option it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)


class StatefulPlugin(Plugin):
    """Base of plug-ins that remember earlier steps. The state is explicit, and every method is pure.

    The learner keeps the state in every checkpoint and passes it in. A step that is repeated after a crash is taken in
    again, with an equal result. A state is plain values that MessagePack has: numbers, texts, lists, dicts.
    """

    def init_state(self) -> Any:
        """Return the state before the first step."""
        raise NotImplementedError

    def update(self, state: Any, batch: Any) -> Any:
        """Return the state after a step; `batch` is what it trained on (`cluster.types.AssembledBatch`)."""
        raise NotImplementedError

    def metrics(self, state: Any) -> dict[str, float]:
        """Return metrics of what is remembered before a step."""
        return {}


P = TypeVar("P")


def lookup(known: Mapping[str, Any], use: str, where: str) -> Any:
    """Return the object that `use` names: an entry of `known`, which may be a path, or a path itself.

    A path is `package.module:name`. Raises ConfigError if neither the dict nor an import has it.
    """
    if use in known and not isinstance(known[use], str):
        return known[use]
    if use not in known and ":" not in use:
        raise ConfigError(
            f"{where}.use = '{use}' is unknown. {nearest(use, known)}Known: {', '.join(sorted(known))}. "
            "For your own, write 'package.module:ClassName'."
        )
    if ".py:" in use:
        file, _, name = use.rpartition(":")
        module = file.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(
            f"{where}.use = '{use}' names a file, which rewards alone may. Name the module: '{module}:{name}', and "
            "start the job in the directory that holds it, or add it to py_modules."
        )
    try:
        return pkgutil.resolve_name(known.get(use, use))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}.use = '{use}' cannot be imported: {error}. "
            "The module must be importable by the job: in its working directory or in py_modules."
        ) from error
    except BaseException as error:
        raise _failed(f"{where}.use = '{use}' cannot be imported", error) from error


def build(known: Mapping[str, type[P] | str], use: str, options: Mapping[str, Any], where: str) -> P:
    """An instance of the plug-in `use` with these options.

    Raises ConfigError for an unknown name, an unknown option or a wrong value, and for whatever else the class raises.
    """
    cls: Any = lookup(known, use, where)
    if not isinstance(cls, type):
        raise ConfigError(f"{where}.use = '{use}' is {cls!r:.80}, no class. Name one as 'package.module:ClassName'.")
    try:
        return cls(**options)
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"{where}.options of '{use}': {explain(error, _options(cls))}.") from error
    except BaseException as error:
        raise _failed(f"{where}.use = '{use}' cannot be built", error) from error


def _failed(what: str, error: BaseException) -> BaseException:
    """Return a ConfigError that names what a plug-in raised, or the error itself if Kanabo or the user raised it."""
    if isinstance(error, KanaboError | KeyboardInterrupt):
        return error
    return ConfigError(f"{what}: {located(error)}")


def _options(cls: Any) -> list[str]:
    return sorted(getattr(cls, "model_fields", ()))


def explain(error: ValidationError | TypeError, known: Iterable[str] = ()) -> str:
    """Pydantic's findings, one phrase each; `known` are the options there are."""
    if isinstance(error, TypeError):
        return str(error)
    return "; ".join(_phrase(e, list(known)) for e in error.errors())


def _phrase(finding: Any, known: list[str]) -> str:
    name = ".".join(map(str, finding["loc"]))
    if finding["type"] == "extra_forbidden":
        new = new_option(name)
        hint = f"It is now '{new}'. " if new in known else translated(name) or nearest(name, known)
        return f"unknown option '{name}'. {hint}Known: {', '.join(known) or 'none'}"
    if finding["type"] == "missing":
        return f"'{name}' is missing, and it has no default"
    if finding["type"] == "value_error":
        said = str(finding["ctx"]["error"]).rstrip(".")
        return said if not name or name in said else f"{name}: {said}"
    return f"{name}: {finding['msg']} (got {finding['input']!r:.80})"
