"""Environments as users of Gymnasium and TRL write them; some misbehave. They import nothing of Kanabo."""

from __future__ import annotations

import os
import random
import subprocess
import time


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


class Undescribed:
    def reset(self):
        return None

    def act(self, what):
        """Do something."""
