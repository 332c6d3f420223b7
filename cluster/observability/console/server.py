"""The run's web page: JSON about a `Source`, and static files. All it changes is how many workers are wished for.

On a loopback address it is open to this machine's users. On any other address every request needs the token, as
`Authorization: Bearer`, or once as `?token=…`, which becomes a cookie. It answers under its own names only: a foreign
page that has its name point here is refused. `limits` beside this file bounds what it takes from strangers.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cluster.config import ConsoleSection
from cluster.errors import ConfigError, KanaboError
from cluster.observability.console import groups
from cluster.observability.console.source import Source
from cluster.process.http_limits import (
    Gate,
    Hosts,
    is_loopback,
    limited_config,
    listen,
    same_secret,
)

TOKEN_VARIABLE = "KANABO_CONSOLE_TOKEN"
COOKIE = "kanabo_console"
POLICY_OF_PAGE = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
"""Nothing is loaded from elsewhere, and a rollout's text is never a script. The charts set styles of their own."""


IN_PROCESS = Hosts("localhost", ("testserver",))
"""For an application without a server: `testserver` is what starlette's test client calls it."""
VIEWS = ("pipeline", "curves", "groups", "judges", "alarms", "workers", "recipe")
"""What `?view=` can name."""


Bound = Annotated[float | None, Query(allow_inf_nan=False)]


class Wish(BaseModel):
    role: str = Field(max_length=200)
    count: int = Field(strict=True)


def app(source: Source, token: str | None = None, hosts: Hosts = IN_PROCESS) -> FastAPI:
    """The application; with a token, nothing is answered without it. It answers under the names of `hosts`."""
    site = FastAPI(title="Kanabo", docs_url=None, redoc_url=None, openapi_url=None)
    site.middleware("http")(_guard(token))
    site.add_middleware(Gate, hosts=hosts)  # the last one added looks first

    @site.exception_handler(KanaboError)
    def unavailable(request: Request, error: KanaboError) -> Response:
        return _error(str(error), 503)

    @site.exception_handler(ConfigError)
    def refused(request: Request, error: ConfigError) -> Response:
        return _error(str(error), 400)

    @site.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        # Without the value that was given: it may be what JSON cannot hold.
        return _error("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()), 422)

    @site.get("/api/status")
    def status() -> Response:
        return _json(source.status())

    @site.get("/api/metrics")
    def metrics(after: str = "") -> Response:
        return _json(source.metrics(after))

    @site.get("/api/groups")
    def list_groups(
        state: groups.State | None = None,
        step: int | None = None,
        text: Annotated[str, Query(max_length=200)] = "",
        min_reward: Bound = None,
        max_reward: Bound = None,
        sort: groups.Sort = "newest",
        ascending: bool = False,
        page: Annotated[int, Query(ge=1, le=10**9)] = 1,
        per_page: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        asked = groups.Query(state, step, text, min_reward, max_reward, sort, ascending, page, per_page)
        return _json(source.groups(asked))

    @site.get("/api/groups/{id:path}")
    def one_group(id: str) -> Response:
        found = source.group(id)
        if found is None:
            why = f"group {id[:80]} is not here: it is sampled now, was dropped, or is trained and no longer kept."
            return _error(why, 404)
        return _json(found)

    @site.get("/api/workers")
    def workers() -> Response:
        return _json({"leased": source.leased(), "staff": source.staff()})

    @site.get("/api/alarms")
    def alarms() -> Response:
        return _json(source.alarms())

    @site.post("/api/scale")
    def scale(wish: Wish, x_kanabo: Annotated[str, Header()] = "") -> Response:
        if not x_kanabo:  # a form on a foreign page could be sent here, but not with a header of its own
            return _error("the header X-Kanabo is missing", 403)
        return _json(source.scale(wish.role, wish.count))

    @site.get("/api/trace")
    def trace(last_s: Annotated[float, Query(gt=0, le=1e9, allow_inf_nan=False)] = 600.0) -> Response:
        answer = _json(source.trace(last_s))
        answer.headers["Content-Disposition"] = 'attachment; filename="trace.json"'
        return answer

    @site.get("/api/recipe")
    def recipe() -> Response:
        return _json(source.recipe())

    static = str(files("cluster.observability.console") / "static")

    @site.api_route("/", methods=["GET", "HEAD"])
    @site.api_route("/index.html", methods=["GET", "HEAD"])
    def page(view: str = "") -> Response:
        if view and view not in VIEWS:
            return _no_such(f"There is no view '{view[:80]}'.")
        return FileResponse(f"{static}/index.html")

    @site.exception_handler(404)
    def nothing_there(request: Request, error: Exception) -> Response:
        said = f"There is nothing at '{request.url.path[:80]}'."
        return _error(said, 404) if request.url.path.startswith("/api/") else _no_such(said)

    @site.exception_handler(HTTPException)
    def not_so(request: Request, error: HTTPException) -> Response:
        return _error(str(error.detail), error.status_code, error.headers)

    site.mount("/", StaticFiles(directory=static))
    return site


def _error(said: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """What is wrong, as JSON; half a surrogate pair, which no encoding has, becomes a question mark."""
    return JSONResponse({"error": said.encode("utf-8", "replace").decode()}, status, headers)


def _no_such(said: str) -> Response:
    """A page that says what is not there, and links the views that are."""
    said = said.encode("utf-8", "replace").decode()
    links = "".join(f'<li><a href="/?view={name}">{name}</a></li>' for name in VIEWS)
    body = f"<h1>Not found</h1><p>{html.escape(said)} Known views:</p><ul>{links}</ul>"
    return HTMLResponse(f'<!doctype html><html lang="en"><title>Not found · Kanabo</title>{body}</html>', 404)


def _json(value: Any) -> Response:
    """NaN and infinity, which JSON has no word for, become null."""
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})


def _guard(token: str | None) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    expected = b"" if token is None else _bytes(token)
    # Not the token itself: it may have letters that a cookie cannot hold.
    cookie = hmac.new(expected, b"kanabo console cookie", hashlib.sha256).hexdigest()

    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None:
            if same_secret(_bytes(request.query_params.get("token", "")), expected):
                left = request.url.remove_query_params("token")
                answer = RedirectResponse(f"{left.path}?{left.query}" if left.query else left.path, 303)
                answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict")
                return answer
            # Headers are decoded as latin-1, whatever their sender encoded them with.
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            entered = same_secret(_bytes(request.cookies.get(COOKIE, "")), cookie.encode())
            if not entered and not (kind.lower() == "bearer" and same_secret(given.encode("latin-1"), expected)):
                why = "This console needs its token: open the address that the run printed, with ?token=… at its end."
                return PlainTextResponse(why, 401, {"WWW-Authenticate": "Bearer"})
        answer = await go_on(request)
        answer.headers["Content-Security-Policy"] = POLICY_OF_PAGE
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers.setdefault("Cache-Control", "no-cache")
        return answer

    return guard


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _given_token() -> str | None:
    """What $KANABO_CONSOLE_TOKEN holds, if it is set. Raises ConfigError for what no header can carry."""
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and (token != token.strip() or not token.isprintable()):
        raise ConfigError(
            f"${TOKEN_VARIABLE} has a control character, bytes that are not UTF-8, or space at an end, which no client "
            "can send as a token. Choose printable characters; unset, a token is made up and printed."
        )
    return token


class Console:
    """The page, served from a thread of this process until `close`."""

    def __init__(self, source: Source, section: ConsoleSection) -> None:
        """Raises ConfigError if the address is not this machine's, or the token that is set cannot be sent."""
        given = _given_token()
        token = None if is_loopback(section.host) else given or secrets.token_urlsafe(24)
        self._socket = listen(section.host, section.port, "console", ", or console.enabled=false")
        shown = f"[{section.host}]" if ":" in section.host else section.host
        port = self._socket.getsockname()[1]
        self.address = f"http://{shown}:{port}/"
        """What to open; with the token if it was made up here."""
        if token is not None and not given:
            self.address += f"?token={token}"
        self._server = uvicorn.Server(limited_config(app(source, token, Hosts(section.host, section.allowed_hosts))))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="console", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()

    def wait(self) -> None:
        """Until the server ends."""
        self._thread.join()
