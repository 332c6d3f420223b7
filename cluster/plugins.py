"""Plug-ins: a class whose fields are its options, found by name in a plain dict or as `package.module:Class`."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ConfigError, nearest


class Plugin(BaseModel):
    """Base of every plug-in: frozen, and an option it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


P = TypeVar("P")


def lookup(known: Mapping[str, Any], use: str, where: str) -> Any:
    """The object that `use` names.

    Raises ConfigError if neither the dict nor an import has it.
    """
    if use in known:
        return known[use]
    if ":" not in use:
        raise ConfigError(
            f"{where}.use = '{use}' is unknown. {nearest(use, known)}Known: {', '.join(sorted(known))}. "
            "For your own, write 'package.module:ClassName'."
        )
    try:
        return pkgutil.resolve_name(use)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}.use = '{use}' cannot be imported: {error}. "
            "The module must be importable by the job: in its working directory or in py_modules."
        ) from error


def build(known: Mapping[str, type[P]], use: str, options: Mapping[str, Any], where: str) -> P:
    """An instance of the plug-in `use` with these options.

    Raises ConfigError for an unknown name, an unknown option or a wrong value.
    """
    cls = lookup(known, use, where)
    try:
        return cls(**options)
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"{where}.options of '{use}': {explain(error)}") from error


def explain(error: ValidationError | TypeError) -> str:
    """Pydantic's findings, one phrase each."""
    if isinstance(error, TypeError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']}" + (f" (got {e['input']!r})" if e["type"] != "missing" else "")
        for e in error.errors()
    )
