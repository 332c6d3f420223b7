"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MOST_SECONDS = 1e9
"""Thirty years; clocks of the system take no much longer time-out."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # options of a plug-in may be infinite; TOML has a word for it
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1; whoever writes it takes the key for a switch.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError(f"{str(value).lower()}, where a number is expected.")
        if str(info.field_name).endswith("_s") and isinstance(value, int | float) and value > MOST_SECONDS:
            raise ValueError(f"{value:g} seconds; at most {MOST_SECONDS:g} are allowed.")
        return value


class Use(Section):
    """A plug-in by name, or as `package.module:Class`, with its options."""

    use: str
    """Its name, or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Fields of the plug-in, as listed below under what the key can use."""
