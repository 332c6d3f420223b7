"""Stored groups that were changed at random, drawn from a seed, and what a learner does first with one it has read."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from cluster.config import parse
from cluster.storage.samples import row_of
from cluster.types import (
    BatchRecord,
    Claim,
    Event,
    Group,
    GroupReward,
    Message,
    Rollout,
    ScoredGroup,
    Task,
    Turn,
    VersionSpan,
    decode,
    encode,
)
from learner.advantages.estimators import GroupAdvantage, advantages_of
from learner.pack import pack

SECTION = parse({}).learner
DEEP = 5000


def groups() -> list[Group]:
    """Sound groups, each with other parts of the data model in it."""

    def rollout(size: int = 9, **changes: Any) -> Rollout:
        given: dict[str, Any] = {
            "tokens": np.arange(size, dtype=np.int32),
            "loss_mask": np.arange(size) % 5 > 2,
            "logprobs": -np.linspace(0, 1, size, dtype=np.float32),
            "text": "4\n5",
            "turns": (Turn("user", 0, 3, "2+2"), Turn("assistant", 3, 5, "4"), Turn("user", 5, 8, "3+2"),
                      Turn("assistant", 8, size, "5", "<think>\n")),
            "spans": (VersionSpan("1.0", 3, 5), VersionSpan("1.1", 8, size)),
            "finish": "stop",
        }  # fmt: skip
        return Rollout(**(given | changes))

    claim = Claim("policy/1/0", "policy", 1, 0, 0, 0, "secret")
    events = (Event("right", 0, 1, 0.5), Event("wrong", 1, 2, -1.0))
    nested = {"list": [1, 2.5, None, {"deep": [True, b"bytes"]}], "text": "\x00 ü"}
    plain = Task.of("0", "2+2", "4", source="sums", **nested)
    variants = {name: (Message("system", "be brief"), Message("user", name)) for name in ("orig", "other")}
    none = np.zeros(0, np.int32)
    return [
        Group(claim, plain, (rollout(reward=1.0, events=events), rollout(12, answer="5", finish="length", reward=0.0))),
        Group(
            claim, Task("1", variants), (rollout(variant="other", agent="x", policy="b"), rollout(11, temperature=0.7))
        ),
        Group(claim, plain, (rollout(variant="solution"), rollout(variant="score", parent=0, attempt=1, turns=()))),
        Group(
            claim,
            plain,
            (rollout(tokens=none, loss_mask=none > 0, logprobs=np.zeros(0, np.float32), turns=(), spans=()),),
        ),
    ]


class Raw(bytes):
    """MessagePack as it is."""


def any_value(draw: random.Random) -> Any:
    return draw.choice(
        (
            None, True, False, 0, 1, -1, 2**31, 2**32, -(2**31) - 1, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e308,
            float("nan"), float("inf"), -float("inf"), "", "x", "\x00", "1.0", "orig", "y" * 3000, b"", b"\xff\xfe",
            b"\x00" * 64, [], {}, [[]], [None], ["orig"], {"orig": []}, {"": None}, {1: 2}, {None: 1}, {1.5: 1},
            [1, 2, 3], [0.5, "a", None], ["<i4", [1], b"\x01\x00\x00\x00"], ["<f4", [2], b"\x00" * 8],
            {"role": "user", "content": "x"}, {"role": "assistant", "start": 0, "end": 1, "text": ""},
            {"version": "1.0", "start": 0, "end": 1}, {"text": "x", "turn": 0}, msgspec.msgpack.Ext(5, b"abc"),
            msgspec.msgpack.Ext(-1, b"\x00\x00\x00\x01"), msgspec.msgpack.Ext(-1, b"\xff" * 12), "1.x", "a.b", "1.-9",
            "1", "1.2.3", "9" * 30 + "." + "9" * 30, "١.٢", Raw(b"\xc1"), Raw(b"\xa2\xff\xfe"),
            Raw(b"\xa3\xed\xa0\x80"),
            Raw(b"\x91" * DEEP + b"\xc0"), Raw(b"\x81\xa1a" * DEEP + b"\xc0"), Raw(b"\xdd\xff\xff\xff\xff"),
            Raw(b"\xdf\x7f\xff\xff\xff"), Raw(b"\xc6\xff\xff\xff\xff"), Raw(b"\xdb\xff\xff\xff\xff"),
        )
    )  # fmt: skip


def any_array(draw: random.Random, given: Any) -> Any:
    """An array as it travels, with something else in it."""
    dtype, shape, data = given if isinstance(given, list | tuple) and len(given) == 3 else ("<i4", [0], b"")
    dtype = draw.choice(
        (
            dtype, dtype, "<i4", "<f4", "<f8", "|b1", "|u1", "<i8", ">i4", "<f2", "<f16", "<c8", "|O", "O8", "|V4",
            "<U1", "|S4", "<M8[s]", "<m8", "", "i4,i4", "(2,)i4", "nonsense", "<i99", "i4," * 3000, "\x00", 4, None,
            [], [["a", "<i4"]], [["a", "<i4"], ["a", "<i4"]], {"names": ["a"]}, {"names": ["a"], "formats": ["<i4"]},
            any_value(draw),
        )
    )  # fmt: skip
    shape = draw.choice(
        (
            shape, shape, [], [0], [1], [-1], [-2], [2, -1], [-1, -1], [3, 3], [1] * 40, [2**62, 4], [2**63 - 1],
            [2**64 - 1], [0, 2**62], "9", 9, None, [1.5], ["9"], [[9]], [True], any_value(draw),
        )
    )  # fmt: skip
    if isinstance(data, bytes):
        data = draw.choice(
            (
                data, data, data[:-1], data[: len(data) // 2], data + b"\x00", data * 2, b"", draw.randbytes(len(data)),
                b"\xff" * len(data), b"\x00\x00\xc0\x7f" * (len(data) // 4), b"\x00\x00\x80\x7f" * (len(data) // 4),
                data.decode("latin-1"), list(data), bytearray(data), any_value(draw),
            )
        )  # fmt: skip
    return draw.choice(([dtype, shape, data], [dtype, shape, data], [dtype, shape, data, None], [dtype, shape]))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a tree of dicts and lists."""
    found = [path]
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        found += places(value, (*path, key))
    return found


def changed(draw: random.Random, tree: Any) -> Any:
    """The tree with one thing in it that is other than it was."""
    path = draw.choice(places(tree))
    if not path:
        return any_value(draw) if draw.random() < 0.1 else tree
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key, value = path[-1], holder[path[-1]]
    is_array = isinstance(value, list) and len(value) == 3 and isinstance(value[2], bytes)
    act = draw.randrange(10)
    if is_array and act < 7:
        holder[key] = any_array(draw, value)
    elif act < 2:
        holder[key] = any_value(draw)
    elif act == 2:
        del holder[key]
    elif act == 3 and isinstance(holder, list):
        holder.insert(key, any_value(draw) if draw.random() < 0.5 else value)
    elif act == 3:
        holder[draw.choice(("more", "", "tokens", "\x00", 7))] = any_value(draw)
    elif act == 4 and isinstance(holder, dict):
        other = draw.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif isinstance(value, bool | None):
        holder[key] = not value
    elif isinstance(value, int | float):
        holder[key] = draw.choice((value + 1, value - 1, -value, value * 1.0, str(value), value + 0.5, 2**40, 10, 9, 3))
    elif isinstance(value, str):
        holder[key] = draw.choice(
            (value + "x", value[:-1], value.upper(), value.encode(), [value], "assistant", "user")
        )
    elif isinstance(value, list):
        draw.shuffle(value)
        holder[key] = draw.choice((value, value * 2, value[:-1], value[1:], tuple(value), {str(v): v for v in value}))
    else:
        holder[key] = any_value(draw)
    return tree


class _Raws:
    """Writes a tree in which `Raw` stands for itself."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=lambda value: value.decode("latin-1"))

    def __call__(self, tree: Any) -> bytes:
        if isinstance(tree, Raw):
            return bytes(tree)
        if isinstance(tree, dict):
            return b"\xdf" + len(tree).to_bytes(4, "big") + b"".join(self(k) + self(v) for k, v in tree.items())
        if isinstance(tree, list | tuple):
            return b"\xdd" + len(tree).to_bytes(4, "big") + b"".join(map(self, tree))
        if isinstance(tree, int):
            tree = bool(tree) if isinstance(tree, bool) else min(max(tree, -(2**63)), 2**64 - 1)
        return self._encoder.encode(tree)


WRITE = _Raws()


def spoilt(draw: random.Random, data: bytes) -> bytes:
    """The stored bytes with something wrong in them."""
    act = draw.randrange(10)
    if act == 0:
        return data[: draw.randrange(len(data))]
    if act == 1:
        found = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
            found[draw.randrange(len(found))] = draw.randrange(256)
        return bytes(found)
    if act == 2:
        at, size = draw.randrange(len(data)), draw.randrange(20)
        return data[:at] + draw.choice((b"", draw.randbytes(size))) + data[at + draw.randrange(20) :]
    tree = msgspec.msgpack.decode(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        tree = changed(draw, tree)
        if not isinstance(tree, dict):
            break
    return WRITE(tree)


def use(group: Group) -> None:
    """Look at a group as every reader does, and do what a learner does first: it agrees in itself, or this fails."""
    for rollout in group.rollouts:
        length = len(rollout.tokens)
        assert rollout.tokens.shape == rollout.loss_mask.shape == rollout.logprobs.shape == (length,)
        assert (rollout.tokens.dtype, rollout.loss_mask.dtype) == (np.int32, np.bool_)
        assert rollout.logprobs.dtype == np.float32
        assert not np.isinf(rollout.logprobs).any()
        for parts in (rollout.turns, rollout.spans):
            bounds = [bound for part in parts for bound in (part.start, part.end)]
            assert bounds == sorted(bounds)
            assert not bounds or (bounds[0] >= 0 and bounds[-1] <= length)
        assert rollout.temperature >= 0
    row_of(1, group, {}, reason="useless")
    tokens = tuple(np.linspace(-1, 1, len(rollout.tokens)) for rollout in group.rollouts)
    rewards = np.array([values.sum() for values in tokens])
    mixed = GroupReward(rewards, tokens=tokens)
    advantages = advantages_of(GroupAdvantage(), "group", [ScoredGroup(group, {}, reward=mixed)], 0.9)
    record = BatchRecord("policy", 2, (group.id,), (rewards,), advantages)
    batch = pack([group], decode(encode(record), BatchRecord), SECTION)
    assert batch.num_tokens == sum(int(rollout.loss_mask[1:].sum()) for rollout in group.rollouts)


def read(first: int, count: int) -> int:
    """Decode `count` spoilt groups, the first from the seed `first`; return how many are sound groups nevertheless.

    A group that can be decoded must be sound, and what cannot must raise msgspec.ValidationError.
    """
    stored = [encode(group) for group in groups()]
    num_sound = 0
    for seed in range(first, first + count):
        draw = random.Random(seed)
        data = spoilt(draw, draw.choice(stored))
        try:
            group = decode(data, Group)
        except msgspec.ValidationError:
            continue
        num_sound += 1
        try:
            again = encode(group)
            assert encode(decode(again, Group)) == again
            use(group)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return num_sound
