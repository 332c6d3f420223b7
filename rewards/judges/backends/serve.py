"""The process of a judge replica: vLLM's server, with the limits of Kanabo's own HTTP servers and a key for every path.

vLLM asks for its key under `/v1` and a few other prefixes only; `/invocations` and `/tokenize` answer without. uvicorn
bounds neither the number of connections nor their time.
"""

from __future__ import annotations

import os
import runpy

import uvicorn.config
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.process.http_limits import LimitedProtocol, same_secret

KEY = "VLLM_API_KEY"
"""Variable of the environment that holds the key."""
MAX_BODY_BYTES = 64 * 2**20
OPEN_PATHS = ("/health",)
"""What answers without the key."""


class JudgeProtocol(LimitedProtocol):
    answer_s = 3600.0
    max_connections = 4096


class KeyGate:
    """Refuse requests without the key, and bodies without a length or with too large a one, before they are read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._expected = app, f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await PlainTextResponse(refusal[1], refusal[0], {"Connection": "close"})(scope, receive, send)
        elif scope["type"] == "http":
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").encode("latin-1")
        if scope["path"] not in OPEN_PATHS and not same_secret(given, self._expected):
            return 401, "This judge answers its run alone."
        if "transfer-encoding" in headers:
            return 411, "A request's body needs a Content-Length here."
        length = int(headers.get("content-length", "0"))  # h11 has refused what is no number
        if length > (MAX_BODY_BYTES if scope["path"] not in OPEN_PATHS else 0):
            return 413, f"A request's body has at most {MAX_BODY_BYTES} bytes here."
        return None


def limit() -> None:
    """Let every uvicorn server of this process that names no protocol have the limits of `JudgeProtocol`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{JudgeProtocol.__module__}:{JudgeProtocol.__qualname__}"


def main() -> None:
    limit()
    # What `vllm serve` runs. That program looks for a distribution called vllm; the CPU build has another name.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from rewards.judges.backends import serve  # under the name by which uvicorn and vLLM import it

    serve.main()
