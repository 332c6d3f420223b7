"""From a run's directory to its Redis, for the commands beside `run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.buffer.connection import Connection
from cluster.buffer.server import Store
from cluster.commands import app
from cluster.config import BufferSection
from cluster.errors import ConfigError, one_line


@contextmanager
def connected(run: Path) -> Iterator[Connection]:
    """To the run's Redis: its own if it is live or a URL was given, else one started on its directory,
    where names of version 0.1 are renamed.

    Raises ConfigError if the URL needs a password that is not known here, or nothing was ever stored.
    """
    url, name = live_url(run), run_id(run)
    if url is not None:
        yield from _using(url, name)
        return
    if not (run / "redis" / "password").exists():
        raise ConfigError(f"{run} has no Redis directory: nothing was ever stored there.")

    with app.progress(f"starting Redis on {run / 'redis'}"):
        store = Store(run / "redis")
    with store:
        for connection in _using(store.url, name):
            connection.call("upgrade", "")
            yield connection


def run_id(run: Path) -> str:
    """The run's name on the cluster and in Redis. Raises ConfigError if it never started, or if that is unreadable."""
    name = _text(run / "id")
    if name is None:
        raise ConfigError(f"{run} has no file 'id': its run never got as far as its buffer.")
    return name


def live_url(run: Path) -> str | None:
    """Where the run's Redis answers: a URL of the user's, or the run's own server if it is up.

    Raises ConfigError if the URL needs a password that is not known here.
    """
    recipe = app.recipe_of(run)
    url = recipe.get("buffer", {}).get("url")
    return _external(url) if url is not None else _own_server(run / "redis")


def _using(url: str, name: str) -> Iterator[Connection]:
    connection = Connection(url, name)
    try:
        yield connection
    finally:
        connection.close()


def _external(url: str) -> str:
    if "…@" not in url:
        return str(BufferSection(url=url).resolved())
    if "KANABO_REDIS_URL" not in os.environ:
        raise ConfigError(
            f"the run's buffer.url = '{url}' has a password, which no file holds. "
            "Set KANABO_REDIS_URL to the whole URL for this command."
        )
    return os.environ["KANABO_REDIS_URL"]


def _own_server(directory: Path) -> str | None:
    """Where the run's own server answers with the run's password, if it does. Raises ConfigError."""
    configuration, password = _text(directory / "redis.conf"), (_text(directory / "password") or "").strip()
    settings = dict(line.split(" ", 1) for line in (configuration or "").splitlines() if " " in line)
    host, port = settings.get("bind", "").partition(" ")[0], settings.get("port", "")
    if not (password and host and port.isascii() and port.isdigit()):
        return None
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    client = redis.Redis(
        host,
        int(port),
        password=password,
        retry=Retry(NoBackoff(), 0),  # redis-py's own would take seconds to believe that nobody is there
        socket_connect_timeout=2,
        socket_timeout=5,
    )
    try:
        client.ping()
    except redis.BusyLoadingError:
        pass  # ours, and coming up
    except redis.RedisError:  # nobody, or somebody else's on a port that was reused
        return None
    finally:
        client.close()
    return f"redis://:{password}@{f'[{host}]' if ':' in host else host}:{port}/0"


def _text(path: Path) -> str | None:
    """What one of the run's own files says; None if it is not there. Raises ConfigError if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {one_line(error)} Restore it, or move the run's directory."
        ) from error
