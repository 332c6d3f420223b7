"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Use(Section):
    """A plug-in by name, or as `package.module:Class`, with its options."""

    use: str
    """Its name, or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Its fields."""
