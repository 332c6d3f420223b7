"""The policy behind an HTTP server: `/v1/chat/completions`, `/v1/models` and `/inference/v1/generate`.

An agent that is given `OPENAI_BASE_URL` and `OPENAI_API_KEY` plays an episode without knowing it: the key, or the URL,
names its session. The endpoint's own key is for clients beside the training: nothing of their turns is written down.

    POST /v1/chat/completions            a turn, or several, of messages
    POST /inference/v1/generate          a turn of token ids
    GET  /v1/models
    POST /v1/episode/end                 {"reward": …, "answer": …}: the episode is over
    POST /sessions/KEY/…                 each of these, for a client whose key cannot be chosen
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from actors.chat import Chat, Row
from actors.endpoint.errors import ApiError
from actors.endpoint.protocol import (
    ChatRequest,
    Completion,
    EndRequest,
    GenerateRequest,
    SamplingParams,
    called,
    check_model,
    check_neutral,
    generated,
    messages_of,
    parsed,
    rows_of,
    strings,
    tools_of,
    variables_of,
)
from actors.endpoint.session import Answer, Prompt, Sampling, Session, checked_outcome
from actors.engine import Engine
from actors.environments.agent import AgentEnvironment, Outcome, PolicyAccess
from actors.episode import Limits, runs_foreign_code
from actors.tools import Schema
from cluster.config import EndpointSection
from cluster.errors import ConfigError, DataError, one_line
from cluster.process.foreign_loops import RESTARTS, Displaced, ForeignLoops
from cluster.process.http_limits import (
    Gate,
    Hosts,
    LimitedProtocol,
    limited_config,
    listen,
    same_secret,
)
from cluster.types import Event, Message, Rollout, Task

log = logging.getLogger(__name__)

KEY_VARIABLE = "KANABO_ENDPOINT_KEY"
LEAVE_S = 5.0
"""An agent that has ended its episode by a call may clean up for so long."""
BLOCKED_S = 30.0
"""An agent that blocks its thread is given up so long after its deadline."""
ANY_TURNS = 2**31
READ_BYTES = 64 * 2**20
"""Bytes that are still read of a body that is too large, so that the answer can say so."""


class _Protocol(LimitedProtocol):
    answer_s = 24 * 3600.0  # an answer takes as long as the engine needs
    max_connections = 4096


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the process's own


class Endpoint:
    """Serves one engine from its own event loop, from the first episode of an agent, or `start`, until `close`."""

    def __init__(self, engine: Engine, chat: Chat, section: EndpointSection, *, model: str = "policy") -> None:
        self._engine, self._chat, self._section = engine, chat, section
        self._models = (model, *section.aliases)
        self._sessions: dict[str, Session] = {}
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._reads_tools = False
        self.counts: Counter[str] = Counter()
        """Since they were last taken: turns, refused requests, failed agents, cut episodes."""
        self.key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
        """Key of clients beside the training."""
        self.address = ""
        """`http://host:port` as other machines reach it; "" before `start`."""

    async def start(self) -> None:
        """Listen. Raises ConfigError if `endpoint.host` is not this machine's."""
        async with self._starting:
            if self._server is not None:
                return
            listener = listen(self._section.host, self._section.port, "endpoint")
            host, port = self._section.host, listener.getsockname()[1]
            local = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
            away = host if local == host else socket.gethostname()
            self._local, self.address = (
                f"http://[{h}]:{port}" if ":" in h else f"http://{h}:{port}" for h in (local, away)
            )
            self._server = _Server(limited_config(self._app(), _Protocol))
            self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
            await self._server.listening.wait()

    async def close(self) -> None:
        for session in list(self._sessions.values()):
            await session.close()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving
            self._server = None

    def take_counts(self) -> dict[str, int]:
        """Return the counts and begin anew."""
        counts = dict(self.counts)
        self.counts.clear()  # sessions count in the same object
        return counts

    # ── episodes ────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def session(
        self, limits: Limits, task: Task, turned: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[tuple[Session, PolicyAccess]]:
        """Open a session and say how an agent reaches it; it ends with the block."""
        await self.start()
        key = secrets.token_urlsafe(24)
        session = Session(key, self._engine, self._chat, limits, task, counts=self.counts, turned=turned)
        self._sessions[key] = session
        try:
            yield session, PolicyAccess(f"{self._local}/v1", key, self._models[0], f"{self._local}/sessions/{key}/v1")
        finally:
            del self._sessions[key]
            await session.close()

    async def play(
        self,
        environment: AgentEnvironment,
        task: Task,
        variant: str,
        limits: Limits,
        loops: ForeignLoops,
        group: object,
        turned: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Rollout]:
        """Run one episode of an agent: a rollout for each conversation that it had with the policy.

        Raises DataError if the agent fails or never asks the policy for anything, InfrastructureError if the engine
        dies.
        """
        for _ in range(RESTARTS):
            with contextlib.suppress(Displaced):  # an agent of another group blocks the loop
                async with self.session(limits, task, turned) as (session, access):
                    outcome, events = await self._outcome(environment, task, variant, session, access, loops, group)
                rollouts = session.rollouts(outcome, variant)
                if not rollouts:
                    self.counts["failed_agents"] += 1
                    hint = session.refused or "OPENAI_BASE_URL and OPENAI_API_KEY name the endpoint."
                    raise DataError(
                        f"the agent of task {task.id} ended without a turn of the policy: the endpoint answered none "
                        f"of its requests. {hint}"
                    )
                return [replace(rollout, events=(*rollout.events, *events(rollout))) for rollout in rollouts]
        raise DataError(f"the agent of task {task.id} failed: other agents blocked its loop {RESTARTS} times.")

    async def _outcome(
        self,
        environment: AgentEnvironment,
        task: Task,
        variant: str,
        session: Session,
        access: PolicyAccess,
        loops: ForeignLoops,
        group: object,
    ) -> tuple[Outcome, Callable[[Rollout], tuple[Event, ...]]]:
        """What the episode came to, and what happened in it, for each of its rollouts."""
        failure = await _watched(_run(environment, task, variant, access, loops, group), session, environment.timeout_s)
        if isinstance(failure, Outcome):
            outcome = failure if session.outcome is None else session.outcome
            if session.cut and outcome.reward != outcome.reward:
                outcome = replace(outcome, reward=environment.reward_when_cut)
            return outcome, _no_events
        if session.outcome is not None:
            return session.outcome, _no_events
        if session.cut:
            self.counts["cut_episodes"] += 1
            return Outcome(environment.reward_when_cut), _event(f"cut short: {session.cut}")
        self.counts["failed_agents"] += 1
        why = f"the agent of task {task.id} failed: {failure}"
        if environment.reward_when_failed is None or not session.sampled:
            raise DataError(f"{why} {session.refused}".rstrip()) from failure
        log.warning("%s", why)
        return Outcome(environment.reward_when_failed), _event(f"the agent failed: {failure}")

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    def _app(self) -> FastAPI:
        app = FastAPI(title="Kanabo policy", docs_url=None, redoc_url=None, openapi_url=None)
        hosts = Hosts(self._section.host, self._section.allowed_hosts)
        app.add_middleware(
            Gate,
            hosts=hosts,
            section="endpoint",
            max_body_bytes=int(self._section.max_body_mib * 2**20),
            read_bytes=READ_BYTES,
            refuse=self._refuse_unread,
        )
        for prefix in ("", "/sessions/{key}"):
            for method, path, answer in (
                ("POST", "/v1/chat/completions", self._chat_completions),
                ("POST", "/inference/v1/generate", self._generate),
                ("POST", "/v1/episode/end", self._end),
                ("GET", "/v1/models", self._list_models),
            ):
                app.add_api_route(prefix + path, _answering(self, answer), methods=[method])

        @app.exception_handler(404)
        def nothing_there(request: Request, error: Exception) -> Response:
            known = "/v1/chat/completions, /v1/models, /inference/v1/generate and /v1/episode/end"
            return _refusal(ApiError(404, f"there is nothing at '{request.url.path[:80]}'; known are {known}."))

        return app

    def _refuse_unread(self, scope: Scope, status: int, why: str) -> Response:
        """Answer a request that no route has seen, as OpenAI's clients read it, and count it."""
        if status == 413:
            why = f"{why} endpoint.max_body_mib = {self._section.max_body_mib:g} in the recipe says so."
        self.counts["refused_requests"] += 1
        bearer = Headers(scope=scope).get("Authorization", "").partition(" ")[2].strip()
        found = (self._sessions.get(key) for key in (*scope["path"].split("/")[2:3], bearer))
        if (session := next(filter(None, found), None)) is not None:
            session.refused = f"The last request that was refused: {why}"
        return _refusal(ApiError(status, why))

    def _session_of(self, request: Request) -> Session | None:
        """Return the session that a request is of; None with the endpoint's key. Raises ApiError for another key."""
        kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
        key = request.path_params.get("key") or (bearer.strip() if kind.lower() == "bearer" else "")
        if (session := self._sessions.get(key)) is not None:
            return session
        if same_secret(key.encode("utf-8", "replace"), self.key.encode()):
            return None
        raise ApiError(
            401,
            "the key names no episode that is under way. Use the OPENAI_API_KEY that the agent was started with, or, "
            f"beside the training, the endpoint's own key (${KEY_VARIABLE}).",
            code="invalid_api_key",
        )

    @contextlib.asynccontextmanager
    async def _session_for(self, session: Session | None, temperature: float | None) -> AsyncIterator[Session]:
        """Yield the session, or one for this request alone, of which nothing is kept."""
        if session is not None:
            yield session
            return
        limits = Limits(self._engine.max_model_len, ANY_TURNS, 1.0 if temperature is None else temperature)
        alone = Session("", self._engine, self._chat, limits, Task.of("request", ""), counts=Counter())
        try:
            yield alone
        finally:
            await alone.close()

    async def _chat_completions(self, session: Session | None, body: bytes) -> Response:
        request = parsed(ChatRequest, body)
        check_model(request.model, self._models)
        check_neutral(request)
        if request.top_logprobs:
            raise ApiError(400, "top_logprobs: the log-prob of the sampled token alone is known; leave it out.")
        rows, variables, tools = rows_of(request), variables_of(request), tools_of(request)
        callable_tools = () if request.tool_choice == "none" else tools
        if callable_tools:
            self._check_tools(callable_tools)
        sampling = Sampling(request.max_completion_tokens or request.max_tokens, strings(request.stop))
        async with self._session_for(session, request.temperature) as used:
            prompts = self._prompts(rows, used.written(rows), tools, variables)
            answers = await used.respond(prompts, sampling, request.n or 1)
            shown = [self._shown(used, answer, callable_tools) for answer in answers]
        completion = Completion(request, self._chat, shown)
        if request.stream:
            return StreamingResponse(completion.chunks(), media_type="text/event-stream")
        return JSONResponse(completion.whole())

    def _check_tools(self, tools: Sequence[Schema]) -> None:
        """Raise ApiError unless this model can be shown tools and calls of these can be read."""
        try:
            if not self._reads_tools:
                self._chat.check_tools()
            self._reads_tools = True
            self._chat.tool_turn("", tools)  # a parser may refuse a schema: before the turn, not after it
        except (ConfigError, ValueError) as error:
            raise ApiError(400, f"tools: {one_line(error)}", param="tools") from error

    def _prompts(
        self, rows: Sequence[Row], written: Sequence[str | None], tools: Sequence[Schema], variables: dict[str, Any]
    ) -> list[Prompt]:
        """Ways to write one prompt: with turns as the policy wrote them, if it did, and as the agent sent them."""
        texts, messages = [], messages_of(rows, written)
        if any(raw is not None for raw in written):
            with contextlib.suppress(DataError):
                texts.append(self._chat.restored(rows, written, tools=tools, **variables))
        try:
            texts.append(self._chat.rendered(rows, tools=tools, **variables))
        except DataError as error:
            if not texts:
                raise ApiError(400, str(error), param="messages") from error
        return [Prompt(text, messages, opened=self._chat.opened_by(text)) for text in texts]

    def _shown(self, session: Session, answer: Answer, tools: Sequence[Schema]) -> tuple[Answer, Row, str]:
        """A turn as the agent is shown it; a call that cannot be read stays in the text."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        finish: str = answer.finish
        if tools:
            turn = self._chat.tool_turn(answer.text, tools)
            if turn.error:
                session.note_invalid_call(answer)
            elif turn.calls:
                message |= {"content": turn.text or None, "tool_calls": called(turn.calls)}
                finish = "tool_calls" if finish == "stop" else finish
        session.remember(message, answer.raw)
        return answer, message, finish

    async def _generate(self, session: Session | None, body: bytes) -> Response:
        request = parsed(GenerateRequest, body)
        params: SamplingParams = request.sampling_params
        if request.model:
            check_model(request.model, self._models)
        check_neutral(params)
        if request.stream:
            raise ApiError(400, "stream: turns of token ids come whole here; leave it out.", param="stream")
        if not all(self._chat.is_token(token) for token in request.token_ids):
            raise ApiError(400, "token_ids holds what is no token of the policy's.", param="token_ids")
        text = self._chat.text(request.token_ids)
        prompt = Prompt(text, (Message("user", text),), tuple(request.token_ids))
        sampling = Sampling(params.max_tokens, strings(params.stop), frozenset(params.stop_token_ids or ()))
        async with self._session_for(session, params.temperature) as used:
            answers = await used.respond([prompt], sampling, params.n or 1)
        return JSONResponse(generated(request, answers))

    async def _end(self, session: Session | None, body: bytes) -> Response:
        request = parsed(EndRequest, body or b"{}")
        if session is None:
            raise ApiError(400, "the endpoint's own key has no episode that could end.")
        session.end(checked_outcome(request.reward, request.answer))
        return JSONResponse({"ended": True})

    async def _list_models(self, session: Session | None, body: bytes) -> Response:
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "kanabo",
                "max_model_len": self._engine.max_model_len,
                "version": self._engine.version,
            }
            for name in self._models
        ]
        return JSONResponse({"object": "list", "data": data})


def _answering(endpoint: Endpoint, answer: Callable[[Session | None, bytes], Awaitable[Response]]) -> Any:
    """Return the route: errors become answers, and what no agent is to blame for ends the episode."""

    async def route(request: Request) -> Response:
        session = None
        try:
            session = endpoint._session_of(request)
            try:
                return await answer(session, await request.body())
            except RecursionError as error:
                raise ApiError(400, "the request is nested too deep.") from error
        except ApiError as error:
            endpoint.counts["refused_requests"] += 1
            if session is not None:
                session.refused = f"The last request that was refused: {error}"
            return _refusal(error)
        except asyncio.CancelledError:
            if session is not None and session.ended.is_set():  # its sampling ended with the episode
                return _refusal(ApiError(403, "the episode has ended.", code="episode_ended"))
            raise
        except Exception as error:
            if session is None:
                log.exception("a request failed")
            else:
                session.fail(error)
            return _refusal(ApiError(503, f"the policy cannot answer: {type(error).__name__}.", code="unavailable"))

    return route


def _refusal(error: ApiError) -> Response:
    return Response(
        json.dumps(error.body).encode("utf-8", "replace"),
        error.status,
        {"X-Should-Retry": "false"},  # OpenAI's clients would ask again
        "application/json",
    )


async def _run(
    environment: AgentEnvironment, task: Task, variant: str, access: PolicyAccess, loops: ForeignLoops, group: object
) -> Outcome:
    if not runs_foreign_code(environment):
        return await environment.run(task, variant, access)
    late = f"the agent did not end within {environment.timeout_s:g} s."
    copied = deepcopy(task)
    return await loops.run(
        group, lambda call: environment.run(copied, variant, access), environment.timeout_s + BLOCKED_S, late=late
    )


async def _watched(run: Any, session: Session, timeout_s: float) -> Outcome | DataError:
    """Return the agent's outcome, or the failure that ended it. Raises what no agent is to blame for."""
    running = asyncio.create_task(run)
    ended = asyncio.create_task(session.ended.wait())
    try:
        await asyncio.wait((running, ended, session.broken), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not running.done():
            await asyncio.wait((running, session.broken), timeout=LEAVE_S, return_when=asyncio.FIRST_COMPLETED)
        if session.broken.done():
            session.broken.result()
        if not running.done():
            if session.outcome is None:
                session.cut = session.cut or f"its deadline of {timeout_s:g} s"
            return DataError("it was still running at its deadline.")
        return running.result()
    except DataError as error:
        return error
    finally:
        ended.cancel()
        if not running.done():
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, DataError, Displaced):
                await running


def _no_events(rollout: Rollout) -> tuple[Event, ...]:
    return ()


def _event(text: str) -> Callable[[Rollout], tuple[Event, ...]]:
    """Return a function that makes an event of a text in the last turn of a rollout."""

    def events(rollout: Rollout) -> tuple[Event, ...]:
        spoken = sum(turn.role == "assistant" for turn in rollout.turns)
        return (Event(text, spoken - 1),)

    return events
