"""An OpenAI-compatible HTTP front on a rollout worker's engine, for agents that train without knowing it."""

from actors.endpoint.server import Endpoint
from actors.endpoint.session import Session

__all__ = ["Endpoint", "Session"]
