"""Random rewards that misbehave: what they raise, return and change, drawn from a seed."""

import asyncio
import decimal
import fractions
import random

import numpy as np

from cluster.types import ABSTAINED, FAILED, SCORED, Provenance, Scores
from rewards.base import Reward


class Mute(Exception):
    def __str__(self):
        raise SystemExit("no words")


class Half(Exception):
    def __str__(self):
        return "half a pair \ud83d"


class Odd(BaseException):
    pass


class Unprintable:
    def __repr__(self):
        raise KeyboardInterrupt


class Lying:
    """Claims to be an array."""

    ndim = 0
    dtype = "lies"

    def item(self):
        raise SystemExit(3)

    def tolist(self):
        raise GeneratorExit


class Text(str):
    def encode(self, *args):
        raise RuntimeError("this text does not encode")

    def __str__(self):
        raise RuntimeError("nor is it one")


def deep():
    return deep()


RAISED = (
    SystemExit(3),
    SystemExit(),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(4),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    asyncio.CancelledError("mine"),
    TimeoutError(),
    TimeoutError("slow"),
    RecursionError("deep"),
    Mute(),
    Half(),
    Odd("odd"),
    MemoryError(),
    KeyError("\udc80"),
    ExceptionGroup("two", [KeyError("a"), Half()]),
    BaseExceptionGroup("worse", [SystemExit(1)]),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
)


def number(draw: random.Random):
    return draw.choice(
        (
            1.0,
            0,
            -3,
            True,
            False,
            np.float32(0.5),
            np.int64(7),
            np.bool_(True),
            float("nan"),
            float("inf"),
            None,
            10**400,
            "1.0",
            b"1",
            [1.0],
            (),
            {},
            {"reward": 1.0},
            {"score": 1.0},
            {"score": None},
            {"score": [1]},
            object(),
            1j,
            np.nan,
            decimal.Decimal("0.25"),
            fractions.Fraction(1, 3),
            np.array(2.0),
            np.array([2.0]),
            np.array(["x"]),
            Unprintable(),
            Lying(),
            Text("1"),
            "\ud800",
            (x for x in ()),
            lambda: 1,
            type,
            {"score": np.float16(2), "pred": "\ud800"},
            2**63,
            -(2**70),
            np.complex64(1),
            np.datetime64("2020-01-01"),
            Ellipsis,
            NotImplemented,
        )
    )


def shape(draw: random.Random, size: int):
    """What may stand where an array of G numbers belongs."""
    return draw.choice(
        (
            lambda: np.array([draw.random() for _ in range(size)]),
            lambda: np.array([draw.random() for _ in range(size)], np.float16),
            lambda: np.ones(size, bool),
            lambda: np.array([number(draw) for _ in range(size)] + [None], object)[:-1],
            lambda: [number(draw) for _ in range(size)],
            lambda: tuple(draw.random() for _ in range(size)),
            lambda: np.ones((size, 1)),
            lambda: np.ones(size + 1),
            lambda: np.array(["1"] * size),
            lambda: np.ones(size, complex),
            lambda: np.zeros(size, [("a", "f8")]),
            lambda: np.array(1.0),
            lambda: np.full(size, np.nan),
            lambda: np.full(size, np.inf),
            lambda: range(size),
            lambda: number(draw),
        )
    )()


def note(draw: random.Random):
    return draw.choice(
        (
            "",
            "fine",
            None,
            "\ud83d half",
            "x" * 100_000,
            7,
            b"bytes",
            Unprintable(),
            Text("text"),
            ["list"],
            "\x00\x1b[31m",
            float("nan"),
        )
    )


def provenance(draw: random.Random):
    return Provenance(
        note(draw),
        note(draw),
        note(draw),
        number(draw),
        draw.choice((-1.0, float("nan"), 3, number(draw))),
        draw.choice((2**63 + 2**63, -1, 2**64, 5, number(draw))),
        note(draw),
    )


def forged(draw: random.Random, size: int, lengths):
    """Scores whose fields were set behind their back."""
    scores = Scores.of([draw.random() for _ in range(size)])
    fields = {
        "values": lambda: shape(draw, size),
        "state": lambda: draw.choice(
            (
                shape(draw, size),
                np.array([draw.choice((SCORED, FAILED, ABSTAINED)) for _ in range(size)], np.uint8),
                np.full(size, 7),
                np.zeros(size, int),
            )
        ),
        "provenance": lambda: draw.choice(
            (
                None,
                (),
                provenance(draw),
                [provenance(draw)],
                tuple(provenance(draw) for _ in range(size)),
                tuple(provenance(draw) for _ in range(size + 2)),
                "note",
                5,
                [None] * size,
            )
        ),
        "version": lambda: draw.choice(("1", None, 3, note(draw))),
        "tokens": lambda: draw.choice(
            (
                None,
                tuple(np.ones(n) for n in lengths),
                [[0.5] * n for n in lengths],
                tuple(np.ones(n + 1) for n in lengths),
                tuple(np.full(n, np.inf, np.float32) for n in lengths),
                [shape(draw, n) for n in lengths],
                "tokens",
                3,
                [1] * size,
            )
        ),
    }
    for name in draw.sample(list(fields), draw.randint(0, 3)):
        object.__setattr__(scores, name, fields[name]())
    return scores


def spoil(draw: random.Random, group):
    """Change what was handed out; what cannot be changed raises, which is ignored."""
    rollout = group.rollouts[0]
    for change in draw.sample(
        (
            lambda: group.task.meta.clear(),
            lambda: group.task.meta["nested"]["list"].append("spoilt"),
            lambda: group.task.variants.clear(),
            lambda: object.__setattr__(group, "rollouts", ()),
            lambda: object.__setattr__(rollout, "text", "spoilt"),
            lambda: object.__setattr__(group.task, "answer", "spoilt"),
            lambda: rollout.tokens.__setitem__(0, 99),
            lambda: rollout.logprobs.setflags(write=True),
            lambda: rollout.loss_mask.sort(),
        ),
        3,
    ):
        try:
            change()
        except (ValueError, TypeError, KeyError):
            continue


class Hostile(Reward):
    """Does something else wrong with every seed."""

    seed: int = 0

    async def score(self, group, services):
        draw = random.Random(f"{self.seed}/{group.id}")
        spoil(draw, group)
        return await self._misbehave(draw, group)

    async def _misbehave(self, draw, group):
        act = draw.randrange(10)
        if act == 0:
            raise draw.choice(RAISED)
        if act == 1:
            return deep()
        if act == 2:
            await asyncio.gather(_raising(draw), asyncio.sleep(0))
        if act == 3:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        if act == 4:
            return number(draw)
        if act == 5:
            return shape(draw, len(group))
        return forged(draw, len(group), [len(r.tokens) for r in group.rollouts])


class Plain(Reward):
    """No coroutine at all."""

    seed: int = 0

    def score(self, group, services):
        draw = random.Random(f"{self.seed}/{group.id}")
        if draw.random() < 0.5:
            raise draw.choice(RAISED)
        return forged(draw, len(group), [len(r.tokens) for r in group.rollouts])


async def _raising(draw):
    await asyncio.sleep(0)
    raise draw.choice(RAISED)


def for_one(completion, seed=0, **columns):
    draw = random.Random(f"{seed}/{completion}")
    columns.clear()
    if draw.random() < 0.3:
        raise draw.choice(RAISED)
    return number(draw)


async def for_one_later(completion, seed=0):
    await asyncio.sleep(0)
    return for_one(completion, seed)


def for_group(completions, completion_ids, log_metric, log_extra, seed=0, **columns):
    draw = random.Random(f"{seed}/{completions}")
    for value in columns.values():
        value.clear()
    if draw.random() < 0.3:
        raise draw.choice(RAISED)
    if draw.random() < 0.3:
        log_extra(note(draw), [number(draw)] * draw.randint(0, 5))
    if draw.random() < 0.3:
        log_metric(note(draw), number(draw))
    return shape(draw, len(completions))


ALL = ("Hostile", "Plain", "for_one", "for_one_later", "for_group")
