"""Environments as users of Gymnasium and TRL write them; some misbehave. They import nothing of Kanabo."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from typing import Literal


class Guess:
    """Gymnasium's interface: a number to be guessed, higher or lower."""

    def __init__(self, high: int = 9) -> None:
        self.high = high

    def reset(self, seed=None):
        self.number = random.Random(seed).randint(1, self.high)
        self.turns = 0
        return f"A number from 1 to {self.high}.", {}

    def step(self, action):
        self.turns += 1
        if action == "hang":
            time.sleep(3600)
        if action == "raise":
            raise KeyError("no such move")
        if action == "exit":
            os._exit(3)
        if action == "leave":
            raise SystemExit(1)
        if action == "print":
            print("debug " * 1000)
        if action == "nan":
            return "", float("nan"), False, False, {}
        if action == "nonsense":
            return "three", 1.0, True
        if action == "fork":
            self.child = subprocess.Popen(["sleep", "3600"])
            return str(self.child.pid), 0.0, False, False, {}
        if action == str(self.number):
            return "right", 1.0, True, False, {"pid": os.getpid()}
        return ("higher" if action < str(self.number) else "lower"), -0.25, False, self.turns == 5, {}


def make_guess(high):
    return Guess(high)


def fails():
    raise ValueError("no data here")


class Counter:
    """TRL's interface, as its documentation writes one."""

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def reset(self, target: int = 3, **kwargs) -> str | None:
        self.count, self.target = 0, target
        return f"Count to {target}."

    def increment(self, times: int = 1) -> int:
        """
        Increment the counter.

        Args:
            times: How often.

        Returns:
            The counter.
        """
        if times < 0:
            raise ValueError("times must not be negative")
        self.count += times * self.step
        return self.count

    async def look(self) -> str:
        """Look at the counter."""
        return f"it stands at {self.count}"

    def hidden(self):
        return "no docstring, no tool"

    def get_reward(self) -> float:
        return float(self.count == self.target)


class OldGym:
    """Gym's interface before 0.26, and an observation that is no text."""

    def reset(self):
        return [0.5, 0.1]

    def step(self, action):
        return [0.5, 0.1], 1.0, True, {}


class Clients:
    """What one async method opens serves in the next."""

    async def reset(self, **kwargs):
        self.loop = asyncio.get_running_loop()
        self.lock = self.loop.create_future()
        self.loop.call_later(0.01, self.lock.set_result, "open")

    async def look(self) -> str:
        """Look whether it is open."""
        return await self.lock


class Shapes:
    """Tools with arguments of many kinds."""

    def reset(self):
        return None

    def draw(self, kind: Literal["line", "circle"], at: dict[str, float], sizes: list[int], name: str | None = None):
        """
        Draw a shape.

        Args:
            kind: What.
            at: Where.
            sizes: How large.
            name: Its name.
        """
        return {"kind": kind, "at": at, "sizes": sizes, "name": name}


class Sick:
    """TRL's interface, with each of its methods ill in turn."""

    def __init__(self, ill: str) -> None:
        self.ill = ill

    def reset(self):
        return 3 if self.ill == "reset" else None

    def act(self) -> str:
        """Act."""
        if self.ill == "exit":
            os._exit(3)
        if self.ill == "hang":
            time.sleep(3600)
        return "done"

    def get_reward(self):
        return {"nan": float("nan"), "text": "high", "none": None}.get(self.ill, 1.0)


class Undescribed:
    def reset(self):
        return None

    def act(self, what):
        """Do something."""
