"""A real HTTP server on a port of its own that answers as a test tells it to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Handler, *, tokenize: Handler | None = None) -> AsyncIterator[str]:
    """The base URL of a server whose chat completions are `answer`."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/v1/models", says({"data": [{"id": "served"}]}))
    if tokenize:
        app.router.add_post("/tokenize", tokenize)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    context = web.TCPSite(runner, "127.0.0.1", 0)
    await context.start()
    try:
        port = context._server.sockets[0].getsockname()[1]  # pyright: ignore
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


def chat(text: str | None, *, top: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """What a chat completion looks like on the wire."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top:
        likeliest = [{"token": t, "logprob": p} for t, p in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": likeliest}]}
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    return {"model": "served", "choices": [choice], "usage": usage, "system_fingerprint": "rev-7"} | more


def says(body: Any, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, headers=headers, content_type="application/json")

    return handler


async def half(request: web.Request) -> web.StreamResponse:
    """Promises an answer and hangs up in the middle of it."""
    whole = json.dumps(chat("4")).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(whole)), "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    assert request.transport is not None
    request.transport.close()
    return response
