"""MessagePack encoding of the data model; arrays travel as (dtype, shape, raw bytes)."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np

from cluster.errors import one_line
from cluster.types import validation

T = TypeVar("T")


def _to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} has no place in the data model")


def _from_wire(type_: type, value: Any) -> Any:
    if type_ is np.ndarray:
        dtype, shape, data = value
        return np.frombuffer(data, np.dtype(dtype)).reshape(shape)
    raise NotImplementedError(f"{type_.__name__} has no place in the data model")


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_wire)
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: Any) -> bytes:
    """MessagePack; arrays as (dtype, shape, raw bytes)."""
    return _encoder.encode(value)


def decode(data: bytes, type_: type[T]) -> T:
    """Return what `encode` was given, checked against `type_`; groups, scores and records also for consistency.

    Values that an earlier version stored with another type, such as a reward of true, become the numbers they are.
    Arrays are read-only views of `data`. Raises msgspec.ValidationError if the bytes are not a consistent `type_`.
    """
    if type_ not in _decoders:
        _decoders[type_] = msgspec.msgpack.Decoder(type_, dec_hook=_from_wire)
    try:
        try:
            found: Any = _decoders[type_].decode(data)
        except msgspec.ValidationError:
            if type_ not in validation.CONSISTENT:
                raise
            found = validation.repaired(msgspec.msgpack.decode(data), type_)
        check: Any = validation.CONSISTENT.get(type_)
        return found if check is None else check(found)
    except msgspec.ValidationError:
        raise
    except Exception as error:
        raise msgspec.ValidationError(f"unreadable {type_.__name__}: {one_line(error)}") from error
