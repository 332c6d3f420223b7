"""What an HTTP server of Kanabo takes from clients before it knows them: bounded bytes, connections and time.

The console and the policy endpoint share it: each has an address, the names that it answers under, and limits.

uvicorn bounds the request line with its headers, and pauses a client that sends faster than the application reads.
It has no time-out for a client that never finishes a request, and no limit on connections that never begin one.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.errors import ConfigError

MAX_HEADER_BYTES = 16 * 2**10
"""Most bytes of a request line with all headers."""
MAX_BODY_BYTES = 4 * 2**10
"""Most bytes of a POST request to the console. Requests of other methods have no body."""
MAX_CONNECTIONS = 128
"""Most connections to the console. At the next one a server closes the connection that has been idle for longest."""
REQUEST_S = 10.0
"""From the connection, or the answer before, to the end of a request's headers."""
ANSWER_S = 60.0
"""Time of a request to the console: from the end of the headers until the client has sent the body and taken the
answer."""
IDLE_S = 5.0
"""Longest pause of a connection between two requests."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
PORTS_TRIED = 20
"""Ports from the wanted one on, before any that is free."""
HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])(?::\d{1,5})?", re.ASCII)
"""A Host header: name or address, and perhaps a port."""


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a deadline for every phase of a connection, and a bound on their number."""

    answer_s: ClassVar[float | None] = None
    """`ANSWER_S` of this server; None for the module's."""
    max_connections: ClassVar[int | None] = None
    """`MAX_CONNECTIONS` of this server; None for the module's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._begun: Any = None
        """The request whose deadline is running."""
        self.active_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(REQUEST_S)
        others: list[LimitedProtocol] = [other for other in self.connections if other is not self]  # type: ignore[misc]
        if len(others) >= (self.max_connections or MAX_CONNECTIONS):
            candidates = [other for other in others if other.idle] or others
            min(candidates, key=lambda other: other.active_at).abort()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense in the body of a request that is answered already
            self.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not self._begun:
            self._begun = self.cycle
            self._allow(self.answer_s or ANSWER_S)

    def on_response_complete(self) -> None:
        self._allow(REQUEST_S)  # before the call: it may begin the next request, which has been waiting
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection without sending what is left to send."""
        self.connections.discard(self)
        self.transport.abort()

    def _allow(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.active_at = self.loop.time()
        self._deadline = self.loop.call_later(seconds, self.abort)


def limited_config(app: ASGIApp, protocol: type[LimitedProtocol] = LimitedProtocol) -> uvicorn.Config:
    """Return how uvicorn serves `app` within these limits, without logging broken requests of strangers."""
    return uvicorn.Config(
        app,
        http=protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=int(IDLE_S),
        ws="none",
        lifespan="off",
        proxy_headers=False,
        log_level=logging.CRITICAL,
        access_log=False,
    )


class Hosts:
    """The names under which a server answers."""

    def __init__(self, bound: str, more: Collection[str] = ()) -> None:
        """`bound`: the address that the server listens on. `more`: further names; `*.domain` stands for all below a
        domain, `*` for all names."""
        names = {*LOOPBACK_NAMES, bound, *more}
        self._any_address = bound in ANY_ADDRESS
        """Addresses in numbers are all ours then: no foreign page has a number as its name and another's address."""
        if self._any_address:
            names.add(socket.gethostname())
        self._names = frozenset(name.lower().strip("[]") for name in names)

    def known(self, header: str | None) -> bool:
        """Whether a request's Host header is one of them."""
        match = HOST.fullmatch(header or "")
        if match is None:
            return False
        name = match[1].lower().strip("[]").removesuffix(".")
        parents = (f"*{name[at:]}" for at, letter in enumerate(name) if letter == ".")
        if "*" in self._names or name in self._names or not self._names.isdisjoint(parents):
            return True
        return self._any_address and _is_address(name)


def _plain(scope: Scope, status: int, why: str) -> Response:
    return PlainTextResponse(why, status)


class Gate:
    """Refuse requests under a foreign name, and bodies that no route needs, before anything else looks at them.

    A page of a foreign site may have its own name resolve to this machine (DNS rebinding). Its requests then carry that
    name as their host, and this server answers under its own names only.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts,
        *,
        section: str = "console",
        max_body_bytes: int = MAX_BODY_BYTES,
        read_bytes: int = 0,
        refuse: Callable[[Scope, int, str], Response] = _plain,
    ) -> None:
        """`section` of the recipe has the key `allowed_hosts` of this server; `refuse` makes the answer to a request
        that is refused, of its status and the reason.

        A refused body of up to `read_bytes` is read and forgotten: a client that is still sending misses the answer.
        """
        self._app, self._hosts = app, hosts
        self._section, self._max_body_bytes, self._read_bytes = section, max_body_bytes, read_bytes
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, why = refusal
        if 0 < int(Headers(scope=scope).get("content-length", "0")) <= self._read_bytes:
            while (await receive()).get("more_body", False):
                pass
        answer = self._refuse(scope, status, why)
        answer.headers["Connection"] = "close"
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if not self._hosts.known(headers.get("host")):
            known = f"{self._section}.allowed_hosts in the recipe adds names."
            return 400, f"This {self._section} does not answer under that name. {known}"
        if "transfer-encoding" in headers:
            return 411, "A request's body needs a Content-Length here."
        length = int(headers.get("content-length", "0"))  # h11 has refused what is no number
        allowed = self._max_body_bytes if scope["method"] == "POST" else 0
        if length > allowed:
            return 413, f"The body of a {scope['method']} request has at most {allowed} bytes here."
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. A name other than `localhost` may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int, section: str, remedy: str = "") -> socket.socket:
    """Return a socket that listens on the port, or on a later one where it is taken.

    Raises ConfigError if `host` is not this machine's. `section` of the recipe holds both, `remedy` is the end of that
    error.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = min(port + PORTS_TRIED, 65536) if port else 0
    for candidate in [*range(port, last), 0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen()
        except OSError as error:
            listener.close()
            if candidate == 0 or error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"{section}.host = '{host}', port {candidate}: {error.strerror}. Give an address of this machine "
                    f"(127.0.0.1, or 0.0.0.0 for all), or another {section}.port{remedy}."
                ) from error
        else:
            return listener
    raise AssertionError("port 0 is free or an error")


def same_secret(given: bytes, expected: bytes) -> bool:
    """Compare in a time that says nothing about the expected bytes."""
    return hmac.compare_digest(given, expected)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
