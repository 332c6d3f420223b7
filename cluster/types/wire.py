"""The border of the data model: MessagePack, and values from outside, which are made to fit or refused by name.

`encode` and `decode` are what processes and Redis exchange; arrays travel as (dtype, shape, raw bytes).

Environments, task sources and chat templates are foreign code. What they give passes here once, before anything is
stored; what rewards give passes `rewards/accepted.py`, which is more forgiving. Booleans, numpy scalars and integers
become the numbers they are; lone surrogates become U+FFFD; everything else that does not fit raises DataError, which
names the field.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from cluster.errors import DataError, one_line
from cluster.types.records import SCORED, BatchRecord, Group, Rollout, Scores, Task

MAX_DEPTH = 64
"""How deep lists and dicts of a task's `meta` may be nested."""
INT64 = np.iinfo(np.int64)
VERSION = re.compile(r"[0-9]{1,18}\.[0-9]{1,18}")
"""`epoch.step` of weights."""
HOTTEST = float(np.finfo(np.float32).max)
"""The learner divides by temperatures in float32."""
OLD_FIELDS = {(Task, "variants"): "views", (Rollout, "variant"): "view", (Rollout, "agent"): "role"}
"""Fields that data of version 0.1 stores under another name."""
T = TypeVar("T")


def clean_text(text: str) -> str:
    """Return text that UTF-8 can encode: surrogate pairs joined, each lone surrogate replaced with U+FFFD."""
    try:
        text.encode()
        return text if type(text) is str else str.__str__(text)
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def checked_task(task: Any) -> Task:
    """Return a copy of the task that can be stored; the copy shares nothing mutable with it. Raises DataError."""
    if not isinstance(task, Task):
        raise DataError(f"tasks: {brief(task)} is no Task.")
    try:
        found = conformed(Task, task, "task")
        _check_variants(found)
    except DataError as error:
        raise DataError(f"task {brief_text(task.id)} cannot be stored: {error}") from error
    return found


def checked_group(group: Any) -> Group:
    """Return the group with the dtypes of the data model, once all its parts agree. Raises DataError."""
    if not isinstance(group, Group):
        raise DataError(f"{brief(group)} is no Group.")
    return consistent_group(conformed(Group, group, "group"))


def fitting_scores(scores: Scores, group: Group) -> Scores:
    """Return consistent scores that are of this group's length and of its rollouts' lengths. Raises DataError."""
    count = len(group.rollouts)
    _check(len(scores.values) == count, "scores.values", f"has {len(scores.values)} numbers for {count} rollouts")
    for i, (values, rollout) in enumerate(zip(scores.tokens or (), group.rollouts, strict=False)):
        length = len(rollout.tokens)
        _check(len(values) == length, f"scores.tokens[{i}]", f"has {len(values)} values for {length} tokens")
    return scores


def consistent_scores(scores: Scores) -> Scores:
    """Return scores whose parts agree with one another. Raises DataError."""
    values = array(scores.values, np.float64, "scores.values")
    state = array(scores.state, np.uint8, "scores.state")
    count = len(values)
    _check(len(state) == count, "scores.state", f"has {len(state)} entries for {count} values")
    _check((state <= 2).all(), "scores.state", lambda: f"holds {brief(state.tolist())}; 0, 1 and 2 are the states")
    known = np.isfinite(values)
    _check(np.array_equal(known, state == SCORED), "scores.values", "must be finite exactly where the state is scored")
    given = len(scores.provenance)
    _check(given in (0, 1, count), "scores.provenance", f"has {given} entries for {count} rollouts; 1 or {count} fit")
    tokens = scores.tokens
    if tokens is not None:
        _check(len(tokens) == count, "scores.tokens", f"has {len(tokens)} arrays for {count} rollouts")
        tokens = tuple(array(t, np.float64, f"scores.tokens[{i}]") for i, t in enumerate(tokens))
        for i, t in enumerate(tokens):
            _check(not np.isinf(t).any(), f"scores.tokens[{i}]", "holds an infinite value; NaN is unknown")
    return replace(scores, values=values, state=state, tokens=tokens)


def consistent_group(group: Group) -> Group:
    """Return a group whose rollouts agree in themselves and with its task. Raises DataError."""
    claim = group.claim
    _check(claim.id, "group.claim.id", "is empty")
    for name in ("epoch", "seq", "task", "version"):
        _check(getattr(claim, name) >= 0, f"group.claim.{name}", f"is {getattr(claim, name)}, below 0")
    _check_variants(group.task)
    count = len(group.rollouts)
    _check(count, "group.rollouts", "is empty")
    rollouts = tuple(consistent_rollout(r, f"group.rollouts[{i}]") for i, r in enumerate(group.rollouts))
    # Utterances of a meeting that reply to others may name what they are for instead of a variant.
    replies = any(r.parent is not None for r in rollouts)
    for i, rollout in enumerate(rollouts):
        where, parent = f"group.rollouts[{i}]", rollout.parent
        _check(parent is None or (0 <= parent < count and parent != i), f"{where}.parent", f"is {parent} of {count}")
        known = replies or rollout.variant in group.task.variants
        variants = ", ".join(group.task.variants)
        _check(known, f"{where}.variant", f"is {rollout.variant!r:.80}; the task has {brief_text(variants)}")
    return replace(group, rollouts=rollouts)


def _check_variants(task: Task) -> None:
    names = ", ".join(task.variants) or "no variant"
    _check("orig" in task.variants, "task.variants", lambda: f"has {brief_text(names)}; 'orig' is expected")


def consistent_rollout(rollout: Rollout, where: str = "rollout") -> Rollout:
    """Return a rollout whose arrays, turns, spans and events agree. Raises DataError."""
    tokens = array(rollout.tokens, np.int32, f"{where}.tokens")
    mask = array(rollout.loss_mask, np.bool_, f"{where}.loss_mask")
    logprobs = array(rollout.logprobs, np.float32, f"{where}.logprobs")
    count = len(tokens)
    for name, found in (("loss_mask", mask), ("logprobs", logprobs)):
        _check(len(found) == count, f"{where}.{name}", f"has {len(found)} entries for {count} tokens")
    _check(not count or tokens.min() >= 0, f"{where}.tokens", "holds a negative token id")
    _check(not np.isinf(logprobs).any(), f"{where}.logprobs", "holds an infinite value")
    usable = 0 <= rollout.temperature <= HOTTEST
    _check(usable, f"{where}.temperature", f"is {rollout.temperature}; a finite number from 0 on is expected")
    _check(not np.isinf(rollout.reward), f"{where}.reward", f"is {rollout.reward}; NaN is unknown")
    _check(rollout.attempt >= 0, f"{where}.attempt", f"is {rollout.attempt}, below 0")
    num_cut = rollout.num_cut_observations
    _check(num_cut >= 0, f"{where}.num_cut_observations", f"is {num_cut}, below 0")
    for name, parts in (("turns", rollout.turns), ("spans", rollout.spans)):
        last = 0
        for i, part in enumerate(parts):
            inside = last <= part.start <= part.end <= count
            _check(inside, f"{where}.{name}[{i}]", f"is [{part.start}, {part.end}) after {last}, of {count} tokens")
            last = part.end
    for i, span in enumerate(rollout.spans):
        known = VERSION.fullmatch(span.version)
        _check(known, f"{where}.spans[{i}].version", lambda v=span.version: f"is {brief(v)}; 'epoch.step' is expected")
    last = 0
    for i, node in enumerate(rollout.path):
        known = last <= node.end <= count and not np.isinf(node.value)
        _check(known, f"{where}.path[{i}]", lambda n=node, at=last: f"is {brief(n)} after {at}, of {count} tokens")
        last = node.end
    spoken = sum(turn.role == "assistant" for turn in rollout.turns)
    for i, event in enumerate(rollout.events):
        _check(event.count >= 0, f"{where}.events[{i}].count", f"is {event.count}, below 0")
        _check(not np.isinf(event.reward), f"{where}.events[{i}].reward", f"is {event.reward}; NaN is unknown")
        # Without any turn on record the number of turns is unknown.
        fits = event.turn >= 0 and (event.turn < spoken or not rollout.turns)
        _check(fits, f"{where}.events[{i}].turn", f"is {event.turn}, but the policy had {spoken} turns")
    return replace(rollout, tokens=tokens, loss_mask=mask, logprobs=logprobs)


def consistent_record(record: BatchRecord) -> BatchRecord:
    """Return a record whose lists have one entry for each of its groups. Raises DataError."""
    count = len(record.groups)
    _check(len(set(record.groups)) == count, "record.groups", "names a group twice")
    for name in ("rewards", "advantages", "pairs", "token_weights"):
        found = len(getattr(record, name))
        optional = name in ("pairs", "token_weights") and found == 0
        _check(optional or found == count, f"record.{name}", f"has {found} entries for {count} groups")
    for i, (rewards, advantages) in enumerate(zip(record.rewards, record.advantages, strict=True)):
        agree = rewards.ndim == 1 and len(rewards) == len(advantages)
        _check(agree, f"record.advantages[{i}]", f"has {len(advantages)} arrays for rewards of {rewards.shape}")
    return record


def array(value: Any, dtype: Any, where: str) -> np.ndarray:
    """Return a one-dimensional array of this dtype that holds the value's numbers unchanged. Raises DataError."""
    try:
        given = np.asarray(value)
        _check(given.ndim == 1, where, f"has shape {given.shape}; one dimension is expected")
        if given.dtype == dtype:
            return given
        numbers = given if given.dtype.kind in "biuf" else _numbers(given, where)
        with np.errstate(all="ignore"):
            found = numbers.astype(dtype)
            lossy = not np.issubdtype(dtype, np.floating) and not np.array_equal(found, numbers)
            overflows = np.isinf(found).any() and not np.isinf(numbers).any()
    except DataError:
        raise
    except Exception as error:  # a subclass of an array, or an object that pretends to be one
        raise DataError(f"{where} is {brief(value)}, which numpy refuses: {type(error).__name__}.") from error
    _check(not lossy and not overflows, where, lambda: f"holds numbers that {np.dtype(dtype)} does not: {brief(value)}")
    return found


def _numbers(given: np.ndarray, where: str) -> np.ndarray:
    _check(given.size == 0 or given.dtype.kind == "O", where, f"holds {given.dtype}; numbers are expected")
    return np.array([conformed(float, value, where) for value in given.tolist()], np.float64)


def brief(value: Any) -> str:
    """Return 80 characters of the value's text in one line, whatever its class does when asked for it."""
    try:
        return " ".join(line.strip() for line in clean_text(f"{value!r:.80}").splitlines())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"a {type(value).__name__}"


def brief_text(value: Any) -> str:
    """Return a name as it is, where it is text, else `brief`."""
    return clean_text(value)[:80] if isinstance(value, str) else brief(value)


def _check(holds: Any, where: str, wrong: str | Callable[[], str]) -> None:
    """Raise DataError where it does not hold; a text that shows the value is made only then, for arrays take long."""
    if not holds:
        raise DataError(f"{where} {wrong if isinstance(wrong, str) else wrong()}.")


# ── types ───────────────────────────────────────────────────────────────────────────────────────────────────────


def conformed(type_: Any, value: Any, where: str) -> Any:
    """Return the value as the type says, copied: an object of the data model, or the dict that stands for one.

    Raises DataError, which names the place and the value.
    """
    try:
        return _conform(type_, value, where)
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(f"{where} is nested too deep, or contains itself.") from error
    except Exception as error:  # an object of a foreign class, asked for its number or its items
        raise DataError(f"{where} cannot be stored: {type(error).__name__}: {brief(error)}.") from error


@cache
def _hints(type_: Any) -> dict[str, Any]:
    return get_type_hints(type_)


def _conform(type_: Any, value: Any, where: str) -> Any:
    if type_ in _SCALARS:
        return _SCALARS[type_](value, where)
    if is_dataclass(type_):
        return _object(type_, value, where)
    origin, args = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        (some,) = (arg for arg in args if arg is not type(None))
        return None if value is None else _conform(some, value, where)
    if origin is Literal:
        text = _text(value, where)
        _check(text in args, where, lambda: f"is {brief(text)}; {', '.join(map(repr, args))} are known")
        return text
    if origin is tuple:
        _check(isinstance(value, list | tuple), where, lambda: f"is {brief(value)}; a tuple is expected")
        return tuple(_conform(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        _check(isinstance(value, Mapping), where, lambda: f"is {brief(value)}; a dict is expected")
        return {_text(k, where): _conform(args[1], v, f"{where}[{brief(k)}]") for k, v in value.items()}
    raise NotImplementedError(type_)


def _object(type_: Any, value: Any, where: str) -> Any:
    known = isinstance(value, (type_, Mapping))
    _check(known, where, lambda: f"is {brief(value)}; a {type_.__name__} is expected")
    given = {}
    for spec in fields(type_):
        part = _stored_field(type_, spec.name, value) if isinstance(value, Mapping) else getattr(value, spec.name)
        hint, place = _hints(type_)[spec.name], f"{where}.{spec.name}"
        # None stands for the default of a field that is never None, such as a note that was left empty.
        if part is None and type(None) not in get_args(hint) and hint is not Any and spec.default is not MISSING:
            part = MISSING
        if part is not MISSING:
            given[spec.name] = _conform(hint, part, place)
        else:
            _check(spec.default is not MISSING or spec.default_factory is not MISSING, place, "is missing")
    return type_(**given)


def _stored_field(type_: Any, name: str, value: Mapping[Any, Any]) -> Any:
    return value.get(name, value.get(OLD_FIELDS.get((type_, name)), MISSING))


def _float(value: Any, where: str) -> float:
    if np.ma.is_masked(value):
        return math.nan  # what lies below a mask is a number that nobody meant
    number: Any = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    _check(isinstance(number, Real | np.bool_), where, lambda: f"is {brief(value)}; a number is expected")
    try:
        found = float(number)
    except OverflowError as error:
        raise DataError(f"{where} is {brief(value)}, which is too large.") from error
    _check(found - found == 0 or found != found, where, f"is {found}; a finite number is expected, or NaN if unknown")
    return found


def _int(value: Any, where: str) -> int:
    number = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    whole = isinstance(number, Integral) or (isinstance(number, Real) and float(number).is_integer())
    _check(whole, where, lambda: f"is {brief(value)}; an integer is expected")
    exact: Any = number
    return _in_64_bits(int(exact), where)


def _in_64_bits(number: int, where: str) -> int:
    _check(int(INT64.min) <= number <= int(INT64.max), where, lambda: f"is {brief(number)}, beyond 64 bits")
    return number


def _bool(value: Any, where: str) -> bool:
    _check(isinstance(value, bool | np.bool_), where, lambda: f"is {brief(value)}; true or false is expected")
    return bool(value)


def _text(value: Any, where: str) -> str:
    _check(isinstance(value, str), where, lambda: f"is {brief(value)}; text is expected")
    return clean_text(value)


def _array(value: Any, where: str) -> np.ndarray:
    wire = isinstance(value, list | tuple) and len(value) == 3 and isinstance(value[2], bytes)
    if wire:
        dtype, shape, data = value
        value = np.frombuffer(data, np.dtype(dtype)).reshape(shape)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        value = np.where(np.ma.getmaskarray(value), math.nan, value.data)
    if isinstance(value, np.ndarray):
        _check(value.dtype.kind in "biufO", where, f"holds {value.dtype}; numbers are expected")
    found = array(value, np.float64, where) if not isinstance(value, np.ndarray) else np.asarray(value)
    return np.array(found, copy=True) if not wire else found


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy made of None, booleans, numbers, texts, bytes, lists and dicts."""
    _check(depth <= MAX_DEPTH, where[:120], f"is nested deeper than {MAX_DEPTH}, or contains itself")
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Integral):
        return _in_64_bits(int(value), where)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}[{brief(k)}]", depth + 1) for k, v in value.items()}
    try:
        found = msgspec.to_builtins(value)
    except Exception as error:
        raise DataError(f"{where} is {brief(value)}, a {type(value).__name__}; plain values are stored.") from error
    _check(type(found) is not type(value), where, lambda: f"is {brief(value)}; plain values are stored")
    return _plain(found, where, depth + 1)


def _key(value: Any, where: str) -> Any:
    key = value.item() if isinstance(value, np.generic) else value
    _check(isinstance(key, str | int), where, lambda: f"has the key {brief(value)}; text or an integer is expected")
    return _plain(key, where)


_SCALARS: dict[Any, Any] = {float: _float, int: _int, bool: _bool, str: _text, np.ndarray: _array, Any: _plain}


def repaired(raw: Any, type_: type[T]) -> T:
    """Return what undecodable but harmless data means, such as a reward stored as true. Raises DataError."""
    return conformed(type_, raw, type_.__name__.lower())


CONSISTENT: Mapping[Any, Any] = {
    Group: consistent_group,
    Scores: consistent_scores,
    BatchRecord: consistent_record,
    Rollout: consistent_rollout,
}
"""By type: the check that `cluster.types.decode` runs on what it has read."""


# ── wire ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
            if type_ not in CONSISTENT and not is_dataclass(type_):
                raise
            found = repaired(msgspec.msgpack.decode(data), type_)
        check: Any = CONSISTENT.get(type_)
        return found if check is None else check(found)
    except msgspec.ValidationError:
        raise
    except Exception as error:
        raise msgspec.ValidationError(f"unreadable {type_.__name__}: {one_line(error)}") from error
