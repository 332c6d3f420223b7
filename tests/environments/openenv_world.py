"""A maze on OpenEnv's own server, run by the Python of .environments/openenv: `python … PLACES` prints its port.

The server has so many places for sessions. A wrong way costs 0.1, the goal gives 1, and a word that is no way fails.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

WAYS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
GOAL = (1, 1)


class Way(Action):
    way: str


class Place(Observation):
    text: str


class Maze(Environment[Way, Place, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._at = (0, 0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Place:
        self._at = ((seed or 0) % 2 - 1, 0)
        return self._seen()

    def step(self, action: Way, timeout_s: float | None = None, **_: Any) -> Place:
        x, y = WAYS[action.way]
        self._at = (self._at[0] + x, self._at[1] + y)
        return self._seen(1.0 if self._at == GOAL else -0.1)

    @property
    def state(self) -> State:
        return State()

    def _seen(self, reward: float | None = None) -> Place:
        return Place(text=f"You are at {self._at}, the goal is at {GOAL}.", reward=reward, done=self._at == GOAL)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    app = create_fastapi_app(Maze, Way, Place, max_concurrent_envs=int(sys.argv[1]))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
