"""What a reward returned, made the scores of its group once and for all, or refused with what is wrong.

Numbers of any kind become float64, a value that is not finite becomes `failed`, unreadable text is escaped, integers
are brought into the range that can be stored. Everything else that is not one score per rollout raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from cluster.types import ABSTAINED, FAILED, SCORED, Group, Provenance, Scores
from rewards.containment import readable, shown

MOST_INT = 2**63 - 1
VERSION_CHARS = 200


def accepted(answer: Any, group: Group) -> Scores:
    """The scores that a reward's answer means. Raises ValueError for what is no answer about this group."""
    if not isinstance(answer, Scores):
        raise ValueError(
            f"it returned {readable(type(answer).__name__)}, not Scores: {shown(answer)}. Return Scores.of([…]) with "
            f"{len(group)} numbers, or Scores.abstained({len(group)}, why)"
        )
    values, state = _values(answer.values, len(group)), _state(answer.state, len(group))
    unknown = ~np.isfinite(values)
    state = np.where(unknown & (state == SCORED), FAILED, state).astype(np.uint8)
    values = np.where(state == SCORED, values, np.nan)
    version = "0" if answer.version is None else readable(str(answer.version), VERSION_CHARS)
    return Scores(values, state, _provenance(answer.provenance, len(group)), version, _tokens(answer.tokens, group))


def number(value: Any) -> float | None:
    """The float that a number of any kind is (bool, int, numpy's, Decimal, a tensor of shape []); None for others."""
    if isinstance(value, Real | Decimal | np.number | np.bool_) and not isinstance(value, complex | np.complexfloating):
        return _float(value)
    if np.ma.is_masked(value):
        return math.nan  # what lies below a mask is a number that nobody meant
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):  # an array or tensor
        inner = value.item()
        return _float(inner) if isinstance(inner, bool | int | float) else None
    return None


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _values(values: Any, num_rollouts: int) -> np.ndarray:
    array = _array(values, "values")
    if array.shape != (num_rollouts,):
        raise ValueError(f"it returned values of shape {array.shape} for {num_rollouts} rollouts")
    return array


def _array(values: Any, name: str) -> np.ndarray:
    """float64, NaN for None. Raises ValueError for what is no array of numbers."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "biuf":
        values = np.where(np.ma.getmaskarray(values), math.nan, values.data)
    values = values if isinstance(values, np.ndarray) else _plain(values, name)
    if values.dtype.kind in "biuf":
        return np.array(values, np.float64)
    if values.dtype.kind == "O" and values.ndim == 1:
        numbers = [math.nan if v is None else number(v) for v in values]
        if (wrong := next((v for v, n in zip(values, numbers, strict=True) if n is None), None)) is None:
            return np.array(numbers, np.float64)
        raise ValueError(f"it returned {name} that hold {shown(wrong)}, which is no number")
    raise ValueError(f"it returned {name} of type {values.dtype}; numbers are expected")


def _plain(values: Any, name: str) -> np.ndarray:
    if not isinstance(values, list | tuple):
        if not callable(getattr(values, "tolist", None)):
            raise ValueError(f"it returned {name} = {shown(values)}; an array of numbers is expected")
        values = values.tolist()
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _state(state: Any, num_rollouts: int) -> np.ndarray:
    array = _array(state, "states")
    if array.shape != (num_rollouts,):
        raise ValueError(f"it returned states of shape {array.shape} for {num_rollouts} rollouts")
    if not np.isin(array, (SCORED, FAILED, ABSTAINED)).all():
        raise ValueError(f"it returned states {shown(array.tolist())}; 0 is scored, 1 failed, 2 abstained")
    return array.astype(np.uint8)


def _provenance(given: Any, num_rollouts: int) -> tuple[Provenance, ...]:
    if given is None:
        return ()
    each = (given,) if isinstance(given, Provenance) else tuple(given)
    if len(each) not in (0, 1, num_rollouts):
        raise ValueError(f"it returned {len(each)} provenances for {num_rollouts} rollouts")
    if (wrong := next((p for p in each if not isinstance(p, Provenance)), None)) is not None:
        raise ValueError(f"it returned {shown(wrong)} as provenance; a Provenance is expected")
    return tuple(
        Provenance(
            _text(p.judge), _text(p.model), _text(p.prompt_hash), max(1, _int(p.attempt)), _seconds(p.latency_s),
            _int(p.cost_tokens), _text(p.note),
        )
        for p in each
    )  # fmt: skip


def _text(value: Any) -> str:
    return "" if value is None else readable(value) if isinstance(value, str) else shown(value, 1000)


def _int(value: Any) -> int:
    """What can be stored of a count: from 0 to 2^63 − 1."""
    whole = number(value)
    if whole is None or math.isnan(whole):
        return 0
    return int(min(max(value if isinstance(value, int) else whole, 0), MOST_INT))


def _seconds(value: Any) -> float:
    seconds = number(value)
    return seconds if seconds is not None and math.isfinite(seconds) and seconds > 0 else 0.0


def _tokens(given: Any, group: Group) -> tuple[np.ndarray, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes) or len(given) != len(group):
        number_of = len(given) if hasattr(given, "__len__") else "no"
        raise ValueError(f"it returned token values of {number_of} rollouts, the group has {len(group)}")
    arrays = tuple(_array(one, "token values") for one in given)
    for i, (array, rollout) in enumerate(zip(arrays, group.rollouts, strict=True)):
        if array.shape != (len(rollout.tokens),):
            raise ValueError(
                f"it returned token values of shape {array.shape} for rollout {i}, which has {len(rollout.tokens)} "
                "tokens"
            )
    return tuple(np.where(np.isfinite(a), a, np.nan) for a in arrays)
